"""The embedded model: its card is correct, and transformers loads and runs it."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from writing import answers

import tunesmith
from tunesmith.data.render import Renderer
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.sampling import Sampling


def test_transformers_loads_the_stored_model() -> None:
    model = AutoModelForCausalLM.from_pretrained(tunesmith.embedded_base())
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.bfloat16
    card = (tunesmith.embedded_base() / "README.md").read_text(encoding="utf-8")
    assert f"{model.num_parameters():,} parameters" in card
    assert sum(file.stat().st_size for file in tunesmith.embedded_base().iterdir()) <= 16 * 2**20


def test_tokenizer_round_trips_any_text_and_template_has_generation_tags() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tunesmith.embedded_base())
    text = "naïve 日本語 🙂\ttabs\r\n and  spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert "{%- generation %}" in tokenizer.chat_template
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_it_answers_chats_and_stops() -> None:
    reference = ModelReference.find("embedded")
    tokenizer = reference.tokenizer()
    chats = [
        [{"role": "user", "content": f"What does '{word}' mean?"}] for word in ("house", "river", "quick", "to walk")
    ]
    model = reference.model(torch.float32, torch.device("cpu"))
    texts = answers(model, tokenizer, chats, Sampling(max_new_tokens=100))
    assert all(texts)
    assert all(len(tokenizer(text)["input_ids"]) < 100 for text in texts), "one answer did not stop"


def test_batched_answers_equal_single_answers() -> None:
    reference = ModelReference.find("embedded")
    tokenizer, model = reference.tokenizer(), reference.model(torch.float32, torch.device("cpu"))
    chats = [
        [{"role": "user", "content": text}]
        for text in ("Hello.", "What is the opposite of 'hot' or 'warm'?", "Go on: the")
    ]
    batched = answers(model, tokenizer, chats, Sampling(max_new_tokens=20))
    alone = [answers(model, tokenizer, [chat], Sampling(max_new_tokens=20))[0] for chat in chats]
    assert batched == alone


def test_sampling_is_reproducible_by_seed() -> None:
    reference = ModelReference.find("embedded")
    tokenizer, model = reference.tokenizer(), reference.model(torch.float32, torch.device("cpu"))
    chat = [[{"role": "user", "content": "Use the word 'river' in a sentence."}]]
    one, same, other = (
        answers(model, tokenizer, chat, Sampling(max_new_tokens=20, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_renderer_prompt_equals_the_chat_template(tmp_path: Path) -> None:
    tokenizer = ModelReference.find("embedded").tokenizer()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert Renderer(tokenizer).prompt(messages) == own


def test_repetition_penalty_prevents_loops() -> None:
    reference = ModelReference.find("embedded")
    tokenizer, model = reference.tokenizer(), reference.model(torch.float32, torch.device("cpu"))
    chat = [[{"role": "user", "content": "Continue: This is a list of"}]]

    def highest_count(penalty: float) -> int:
        sampling = Sampling(max_new_tokens=60, temperature=1.0, seed=3, repetition_penalty=penalty)
        words = answers(model, tokenizer, chat, sampling)[0].split()
        return max(words.count(word) for word in words)

    assert highest_count(3.0) <= highest_count(1.0)
    assert highest_count(3.0) <= 2
