"""The model that ships: what its card says of it, and that the ecosystem takes it as it is."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import tunesmith
from tunesmith.data.render import Renderer
from tunesmith.models.generate import Sampling, answers
from tunesmith.models.model_reference import ModelReference


def test_transformers_loads_it_as_it_lies() -> None:
    model = AutoModelForCausalLM.from_pretrained(tunesmith.embedded_base())
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.bfloat16
    card = (tunesmith.embedded_base() / "README.md").read_text(encoding="utf-8")
    assert f"{model.num_parameters():,} weights" in card
    assert sum(file.stat().st_size for file in tunesmith.embedded_base().iterdir()) <= 16 * 2**20


def test_its_tokenizer_takes_any_text_and_its_template_has_marks() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tunesmith.embedded_base())
    text = "naïve 日本語 🙂\ttabs\r\n and  spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert "{%- generation %}" in tokenizer.chat_template
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_it_answers_in_the_chat_format_and_stops() -> None:
    usable = ModelReference.find("embedded")
    tokenizer = usable.tokenizer()
    chats = [
        [{"role": "user", "content": f"What does '{word}' mean?"}] for word in ("house", "river", "quick", "to walk")
    ]
    model = usable.model(torch.float32, torch.device("cpu"))
    found = answers(model, tokenizer, chats, Sampling(max_new_tokens=100))
    assert all(found)
    assert all(len(tokenizer(answer)["input_ids"]) < 100 for answer in found), "one of them did not stop"


def test_answers_in_a_batch_are_those_alone() -> None:
    usable = ModelReference.find("embedded")
    tokenizer, model = usable.tokenizer(), usable.model(torch.float32, torch.device("cpu"))
    chats = [
        [{"role": "user", "content": text}]
        for text in ("Hello.", "What is the opposite of 'hot' or 'warm'?", "Go on: the")
    ]
    together = answers(model, tokenizer, chats, Sampling(max_new_tokens=20))
    alone = [answers(model, tokenizer, [chat], Sampling(max_new_tokens=20))[0] for chat in chats]
    assert together == alone


def test_sampling_is_the_same_for_the_same_seed() -> None:
    usable = ModelReference.find("embedded")
    tokenizer, model = usable.tokenizer(), usable.model(torch.float32, torch.device("cpu"))
    chat = [[{"role": "user", "content": "Use the word 'river' in a sentence."}]]
    one, same, other = (
        answers(model, tokenizer, chat, Sampling(max_new_tokens=20, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_the_prompt_is_the_renderers_and_no_other(tmp_path: Path) -> None:
    tokenizer = ModelReference.find("embedded").tokenizer()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert Renderer(tokenizer).prompt(messages) == own


def test_a_repetition_penalty_keeps_a_small_model_out_of_loops() -> None:
    usable = ModelReference.find("embedded")
    tokenizer, model = usable.tokenizer(), usable.model(torch.float32, torch.device("cpu"))
    chat = [[{"role": "user", "content": "Continue: This is a list of"}]]

    def most_said(penalty: float) -> int:
        sampling = Sampling(max_new_tokens=60, temperature=1.0, seed=3, repetition_penalty=penalty)
        words = answers(model, tokenizer, chat, sampling)[0].split()
        return max(words.count(word) for word in words)

    assert most_said(3.0) <= most_said(1.0)
    assert most_said(3.0) <= 2
