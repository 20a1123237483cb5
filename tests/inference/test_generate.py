"""Generation samples by the settings' formulas, stops at the end of a turn, and gives the same text in a batch."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bigram import chain_model, drawn_by_hand, letters_model, scores_of
from bytewise import CHATML, byte_tokenizer
from families import config_of
from matrix import pair_tokenizer
from small_models import method_of
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase
from writing import answers, stream

from tunesmith.data.render import Renderer
from tunesmith.errors import UserError
from tunesmith.inference.generate import BASE, OWN, Generator
from tunesmith.inference.sampling import Sampling, transformers_options

TOKENIZER = byte_tokenizer()
SAMPLED = Sampling(max_new_tokens=16, temperature=0.8, top_p=0.7, repetition_penalty=1.3, seed=5)


def chat_of(*texts: str) -> list[dict[str, Any]]:
    roles = ("user",) if len(texts) == 1 else ("system", "user")
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def prompt_ids(chat: list[dict[str, Any]]) -> list[int]:
    """The ids from transformers' own chat template."""
    encoding: Any = TOKENIZER.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
    return list(encoding["input_ids"])


@pytest.fixture(scope="module")
def letters() -> Any:
    return letters_model()


# Sampling


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(SAMPLED, id="all settings together"),
        pytest.param(Sampling(max_new_tokens=7), id="greedy"),
        pytest.param(Sampling(max_new_tokens=16, repetition_penalty=1.7), id="greedy with a repetition penalty"),
        pytest.param(Sampling(max_new_tokens=16, temperature=1.0), id="unchanged probabilities"),
        pytest.param(Sampling(max_new_tokens=16, temperature=2.5, seed=1), id="high temperature: beyond the top 50"),
        pytest.param(Sampling(max_new_tokens=16, temperature=0.3, seed=2), id="low temperature"),
        pytest.param(Sampling(max_new_tokens=16, temperature=1.0, top_p=0.2), id="low top_p"),
        pytest.param(Sampling(max_new_tokens=16, temperature=1.6, top_p=0.9, seed=7), id="high temperature and top_p"),
    ],
)
def test_tokens_are_sampled_by_the_formulas(letters: Any, sampling: Sampling) -> None:
    chat = chat_of("Be brief.", "What is 2 + 2?")
    expected = TOKENIZER.decode(drawn_by_hand(scores_of(letters), prompt_ids(chat), sampling))
    assert len(expected) == sampling.max_new_tokens
    assert answers(letters, TOKENIZER, [chat], sampling) == [expected]


def test_each_setting_changes_the_sample_and_the_same_seed_repeats_it(letters: Any) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"temperature": 0.0}, {"temperature": 1.4}, {"top_p": 0.3}, {"repetition_penalty": 2.0}, {"seed": 6},
        {"max_new_tokens": 11},
    ]  # fmt: skip
    texts = [answers(letters, TOKENIZER, [chat_of("Hi")], replace(SAMPLED, **each))[0] for each in changes]
    assert len(set(texts)) == len(changes)
    assert texts[0] == answers(letters, TOKENIZER, [chat_of("Hi")], SAMPLED)[0]
    assert texts[0][:11] == texts[-1]


def test_default_sampling_is_greedy_with_up_to_256_tokens() -> None:
    assert Sampling() == Sampling(256, 0.0, 1.0, 1.0, 0, 0, 0.0, 0.0, 0.0, {}, ())
    assert Sampling().takes_the_likeliest
    expected = {"do_sample": False, "max_new_tokens": 256, "repetition_penalty": 1.0}
    assert transformers_options(Sampling()) == expected


# Stop tokens


def tokenizer_of(eos: str | None = "<|im_end|>", pad: str | None = "<|pad|>", template: str | None = CHATML) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = eos, pad, template
    return tokenizer


@pytest.mark.parametrize(
    ("end", "tokenizer", "own"),
    [
        pytest.param("<|im_end|>", tokenizer_of(eos="Q"), None, id="the template's end of turn"),
        pytest.param("Q", tokenizer_of(eos="Q"), None, id="the tokenizer's eos token"),
        pytest.param("<|endoftext|>", tokenizer_of(), None, id="the end of text token"),
        pytest.param("Q", tokenizer_of(), "Q", id="the model's own eos token"),
        pytest.param("Q", tokenizer_of(), "RQ", id="one of several eos tokens of the model"),
        pytest.param("<|im_end|>", tokenizer_of(pad=None), "Q", id="without a padding token"),
    ],
)
def test_an_answer_ends_before_the_first_stop_token(end: str, tokenizer: Any, own: str | None) -> None:
    model = chain_model(tokenizer, "a", "b", end, "c", "d")
    if own is not None:
        ids = tokenizer.convert_tokens_to_ids(list(own))
        model.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
    assert answers(model, tokenizer, [chat_of("Hi")], Sampling(max_new_tokens=9)) == ["ab"]
    pieces: list[str] = []
    text = Renderer(tokenizer).prompt(chat_of("Hi"))
    assert stream(model, tokenizer, text, Sampling(max_new_tokens=9), pieces.append) == "ab"
    assert "".join(pieces).removesuffix(end) == "ab"


def test_an_immediate_stop_gives_an_empty_answer_and_whitespace_is_stripped() -> None:
    ended = chain_model(TOKENIZER, "<|im_end|>", "a")
    assert answers(ended, TOKENIZER, [chat_of("Hi")], Sampling(max_new_tokens=5)) == [""]
    spaced = chain_model(TOKENIZER, "Ġ", "a", "<|pad|>", "ĉ", "<|im_end|>")
    assert answers(spaced, TOKENIZER, [chat_of("Hi")], Sampling(max_new_tokens=9)) == ["a"]
    pieces: list[str] = []
    assert stream(spaced, TOKENIZER, "\n", Sampling(max_new_tokens=9), pieces.append) == "".join(pieces)


def test_streams_emit_complete_characters_until_a_stop_token() -> None:
    bytes_of = TOKENIZER.convert_ids_to_tokens(TOKENIZER("é 語🙂x")["input_ids"])
    model = chain_model(TOKENIZER, *bytes_of, "<|im_end|>")
    pieces: list[str] = []
    assert stream(model, TOKENIZER, "So:\n", Sampling(max_new_tokens=16), pieces.append) == "é 語🙂x"
    assert "".join(pieces) == "é 語🙂x"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 1, "it is not streamed"


@pytest.mark.parametrize(("room", "expected"), [(1, 1), (7, 7), (12, 9), (9, 9)])
def test_an_answer_is_limited_by_the_context(room: int, expected: int) -> None:
    chat = chat_of("Hello.")
    model = letters_model(max_position_embeddings=len(prompt_ids(chat)) + room)
    assert len(answers(model, TOKENIZER, [chat], Sampling(max_new_tokens=9))[0]) == expected


def test_a_chat_that_fills_the_context_is_refused_with_both_lengths() -> None:
    chat = chat_of("Hello.")
    length = len(prompt_ids(chat))
    for positions in (length, length - 3):
        model = letters_model(max_position_embeddings=positions)
        with pytest.raises(UserError, match=f"has {length} tokens, and the model's context holds {positions}"):
            answers(model, TOKENIZER, [chat_of("Hi"), chat], Sampling(max_new_tokens=3))


def test_an_answer_of_a_family_without_a_longest_context_is_not_limited() -> None:
    torch.manual_seed(0)
    config = config_of("bloom", len(TOKENIZER), eos_token_id=None, pad_token_id=None, initializer_range=0.4)
    assert not hasattr(config, "max_position_embeddings")
    model = AutoModelForCausalLM.from_config(config).eval()
    expected = TOKENIZER.decode(greedy_alone(model, prompt_ids(chat_of("Hello.")), 5))
    assert answers(model, TOKENIZER, [chat_of("Hello.")], Sampling(max_new_tokens=5)) == [expected]


def test_the_source_of_an_encoder_decoder_takes_no_room_from_its_answer() -> None:
    model = AutoModelForSeq2SeqLM.from_config(config_of("bart", len(TOKENIZER), max_position_embeddings=20)).eval()
    model.generation_config.forced_eos_token_id = None
    model.final_logits_bias[0, TOKENIZER.convert_tokens_to_ids("a")] = 1e4
    assert answers(model, TOKENIZER, [chat_of(17 * "b")], Sampling(max_new_tokens=9)) == [9 * "a"]
    with pytest.raises(UserError, match="has 20 tokens, and the model's context holds 20"):
        answers(model, TOKENIZER, [chat_of(20 * "b")], Sampling(max_new_tokens=9))


def test_an_answer_of_an_encoder_decoder_ends_with_its_decoders_positions() -> None:
    model = AutoModelForSeq2SeqLM.from_config(config_of("bart", len(TOKENIZER), max_position_embeddings=20)).eval()
    model.generation_config.forced_eos_token_id = None
    model.final_logits_bias[0, TOKENIZER.convert_tokens_to_ids("a")] = 1e4
    assert answers(model, TOKENIZER, [chat_of(9 * "b")], Sampling(max_new_tokens=30)) == [20 * "a"]


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_take_room_from_the_chat_and_its_answer(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    positions = len(prompt_ids(chat_of("Hello."))) + 12
    config = config_of("gpt2", len(TOKENIZER), eos_token_id=None, pad_token_id=None, n_positions=positions)
    model = AutoModelForCausalLM.from_config(config).eval()
    method_of(kind, tokens=7).apply(deepcopy(model), seed=0).save_pretrained(tmp_path)
    generator = Generator(model, TOKENIZER)
    generator.paged.adapters.add(OWN, tmp_path)
    (answer,) = generator.continuations([generator.prompt_of(chat_of("Hello."))], Sampling(max_new_tokens=50))
    assert len(answer.tokens) == 5, "12 positions after the chat, less 7 virtual tokens"
    assert answer.finish_reason == "length"
    assert answer.prompt_tokens == len(prompt_ids(chat_of("Hello.")))
    with pytest.raises(UserError, match=f"the model's context holds {positions - 7}. Shorten it"):
        generator.answers([chat_of("Hello, World.")], Sampling(max_new_tokens=50))
    assert generator.answers([chat_of("Hello, World.")], Sampling(max_new_tokens=50), adapter=BASE)


def test_a_rendered_chat_gets_no_second_start_token(letters: Any) -> None:
    starting = byte_tokenizer()
    starting.add_special_tokens({"bos_token": "<|startoftext|>"})
    starting.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|startoftext|> $A", special_tokens=[("<|startoftext|>", starting.bos_token_id)]
    )
    assert starting("a")["input_ids"][0] == starting.bos_token_id
    input_ids: list[list[int]] = []
    handle = letters.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: input_ids.append(inputs[0][0].tolist())
    )
    try:
        answers(letters, starting, [chat_of("Hi")], Sampling(max_new_tokens=1))
    finally:
        handle.remove()
    assert input_ids[-1] == prompt_ids(chat_of("Hi"))


# Batches


@pytest.fixture(scope="module")
def attentive_model() -> Any:
    """A Llama with large weights, so that its output depends on every previous token."""
    torch.manual_seed(0)
    config = config_of("llama", len(TOKENIZER), eos_token_id=None, pad_token_id=None, initializer_range=0.4)
    return AutoModelForCausalLM.from_config(config).eval()


def greedy_alone(model: Any, ids: list[int], count: int) -> list[int]:
    """The most likely tokens, each from a forward pass over all tokens before it."""
    for _ in range(count):
        ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:]


def test_batched_chats_of_unequal_length_are_answered_as_alone_and_in_order(attentive_model: Any) -> None:
    chats = [chat_of(text) for text in ("Why is that so, and why not otherwise?", "Hi", "Be there at ten.", "No", "Go")]
    stops = Renderer(TOKENIZER).stop_tokens
    expected = []
    for chat in chats:
        ids = greedy_alone(attentive_model, prompt_ids(chat), 12)
        end = next((index for index, token in enumerate(ids) if token in stops), 12)
        expected.append(TOKENIZER.decode(ids[:end], skip_special_tokens=True).strip())
    assert len(set(expected)) == 5
    done: list[int] = []
    assert answers(attentive_model, TOKENIZER, chats, Sampling(max_new_tokens=12), 2, done.append) == expected
    assert done == sorted(set(done))
    assert done[0] < done[-1] == 5
    assert answers(attentive_model, TOKENIZER, chats, Sampling(max_new_tokens=12)) == expected


def test_the_seed_is_set_once_for_all_batches(letters: Any) -> None:
    chats = [chat_of("same")] * 3
    texts = answers(letters, TOKENIZER, chats, replace(SAMPLED, repetition_penalty=1.0), 1)
    assert len(set(texts)) == 3
    assert texts[0] == answers(letters, TOKENIZER, chats[:1], replace(SAMPLED, repetition_penalty=1.0))[0]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoders_answer_batched_texts_as_alone(family: str) -> None:
    tokenizer: PreTrainedTokenizerBase = pair_tokenizer()
    torch.manual_seed(0)
    special: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = config_of(
        family, len(tokenizer), decoder_start_token_id=tokenizer.pad_token_id, tie_word_embeddings=False, **special
    )
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    model.generation_config.forced_eos_token_id = None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    words = [token for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer))) if token.isalnum()][:9]
    texts = [" ".join(words), words[3], " ".join(words[2:6])]
    expected = []
    for text in texts:
        source: Tensor = tokenizer(text, return_tensors="pt")["input_ids"]
        assert int(source[0, -1]) == tokenizer.eos_token_id
        ids = [tokenizer.pad_token_id]
        while len(ids) < 9 and tokenizer.eos_token_id not in ids:
            ids.append(int(model(input_ids=source, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(ids[1:], skip_special_tokens=True).strip())
    assert len(set(expected)) > 1
    assert answers(model, tokenizer, [chat_of(text) for text in texts], Sampling(max_new_tokens=8)) == expected
