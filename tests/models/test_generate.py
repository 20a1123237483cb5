"""Text is drawn by the formulas that the settings name, ends where a turn ends, and is the same in a batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from bigram import chain_model, drawn_by_hand, letters_model, scores_of
from bytewise import CHATML, byte_tokenizer
from families import config_of
from matrix import pair_tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from tunesmith.data.render import Renderer
from tunesmith.errors import UserError
from tunesmith.models.generate import Sampling, answers, stream

TOKENIZER = byte_tokenizer()
DRAWN = Sampling(max_new_tokens=16, temperature=0.8, top_p=0.7, repetition_penalty=1.3, seed=5)


def chat_of(*texts: str) -> list[dict[str, Any]]:
    roles = ("user",) if len(texts) == 1 else ("system", "user")
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def prompt_ids(chat: list[dict[str, Any]]) -> list[int]:
    """As transformers' own template renders and tokenizes it."""
    found: Any = TOKENIZER.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
    return list(found["input_ids"])


@pytest.fixture(scope="module")
def letters() -> Any:
    return letters_model()


# How a token is drawn


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(DRAWN, id="all at once"),
        pytest.param(Sampling(max_new_tokens=7), id="the likeliest"),
        pytest.param(Sampling(max_new_tokens=16, repetition_penalty=1.7), id="the likeliest, without repeating"),
        pytest.param(Sampling(max_new_tokens=16, temperature=1.0), id="as the model has it"),
        pytest.param(Sampling(max_new_tokens=16, temperature=2.5, seed=1), id="hot: beyond the fifty likeliest"),
        pytest.param(Sampling(max_new_tokens=16, temperature=0.3, seed=2), id="cold"),
        pytest.param(Sampling(max_new_tokens=16, temperature=1.0, top_p=0.2), id="few"),
        pytest.param(Sampling(max_new_tokens=16, temperature=1.6, top_p=0.9, seed=7), id="hot and many"),
    ],
)
def test_every_token_is_drawn_by_the_formulas(letters: Any, sampling: Sampling) -> None:
    chat = chat_of("Be brief.", "What is 2 + 2?")
    wanted = TOKENIZER.decode(drawn_by_hand(scores_of(letters), prompt_ids(chat), sampling))
    assert len(wanted) == sampling.max_new_tokens
    assert answers(letters, TOKENIZER, [chat], sampling) == [wanted]


def test_each_setting_changes_what_is_drawn_and_the_same_seed_does_not(letters: Any) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"temperature": 0.0}, {"temperature": 1.4}, {"top_p": 0.3}, {"repetition_penalty": 2.0}, {"seed": 6},
        {"max_new_tokens": 11},
    ]  # fmt: skip
    found = [answers(letters, TOKENIZER, [chat_of("Hi")], replace(DRAWN, **each))[0] for each in changes]
    assert len(set(found)) == len(changes)
    assert found[0] == answers(letters, TOKENIZER, [chat_of("Hi")], DRAWN)[0]
    assert found[0][:11] == found[-1]


def test_without_settings_the_likeliest_of_up_to_256_tokens_are_taken() -> None:
    assert Sampling() == Sampling(256, 0.0, 1.0, 1.0, 0)
    assert Sampling().options() == {"do_sample": False, "max_new_tokens": 256, "repetition_penalty": 1.0}


# Where a text ends


def tokenizer_of(eos: str | None = "<|im_end|>", pad: str | None = "<|pad|>", template: str | None = CHATML) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = eos, pad, template
    return tokenizer


@pytest.mark.parametrize(
    ("end", "tokenizer", "own"),
    [
        pytest.param("<|im_end|>", tokenizer_of(eos="Q"), None, id="the template's end of a turn"),
        pytest.param("Q", tokenizer_of(eos="Q"), None, id="the tokenizer's end"),
        pytest.param("<|endoftext|>", tokenizer_of(), None, id="the end of a document"),
        pytest.param("Q", tokenizer_of(), "Q", id="the model's own end"),
        pytest.param("Q", tokenizer_of(), "RQ", id="one of several of the model's own"),
        pytest.param("<|im_end|>", tokenizer_of(pad=None), "Q", id="where nothing is for padding"),
    ],
)
def test_an_answer_ends_before_the_first_token_that_ends_it(end: str, tokenizer: Any, own: str | None) -> None:
    model = chain_model(tokenizer, "a", "b", end, "c", "d")
    if own is not None:
        ids = tokenizer.convert_tokens_to_ids(list(own))
        model.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
    assert answers(model, tokenizer, [chat_of("Hi")], Sampling(max_new_tokens=9)) == ["ab"]
    told: list[str] = []
    text = Renderer(tokenizer).prompt(chat_of("Hi"))
    assert stream(model, tokenizer, text, Sampling(max_new_tokens=9), told.append) == "ab"
    assert "".join(told).removesuffix(end) == "ab"


def test_an_answer_that_ends_at_once_is_empty_and_white_space_around_one_goes() -> None:
    ended = chain_model(TOKENIZER, "<|im_end|>", "a")
    assert answers(ended, TOKENIZER, [chat_of("Hi")], Sampling(max_new_tokens=5)) == [""]
    spaced = chain_model(TOKENIZER, "Ġ", "a", "<|pad|>", "ĉ", "<|im_end|>")
    assert answers(spaced, TOKENIZER, [chat_of("Hi")], Sampling(max_new_tokens=9)) == ["a"]
    told: list[str] = []
    assert stream(spaced, TOKENIZER, "\n", Sampling(max_new_tokens=9), told.append) == "".join(told)


def test_other_tokens_than_ends_end_nothing_and_a_stream_comes_in_whole_characters() -> None:
    bytes_of = TOKENIZER.convert_ids_to_tokens(TOKENIZER("é 語🙂x")["input_ids"])
    model = chain_model(TOKENIZER, *bytes_of, "<|im_end|>")
    told: list[str] = []
    assert stream(model, TOKENIZER, "So:\n", Sampling(max_new_tokens=16), told.append) == "é 語🙂x"
    assert "".join(told) == "é 語🙂x"
    assert not any("\ufffd" in piece for piece in told)
    assert len([piece for piece in told if piece]) > 1, "it comes as it is written"


@pytest.mark.parametrize(("room", "wanted"), [(1, 1), (7, 7), (12, 9), (9, 9)])
def test_an_answer_goes_to_the_contexts_end_at_most(room: int, wanted: int) -> None:
    chat = chat_of("Hello.")
    model = letters_model(max_position_embeddings=len(prompt_ids(chat)) + room)
    assert len(answers(model, TOKENIZER, [chat], Sampling(max_new_tokens=9))[0]) == wanted


def test_a_chat_that_fills_the_context_is_refused_with_both_lengths() -> None:
    chat = chat_of("Hello.")
    length = len(prompt_ids(chat))
    for positions in (length, length - 3):
        model = letters_model(max_position_embeddings=positions)
        with pytest.raises(UserError, match=f"has {length} tokens, and the model's context holds {positions}"):
            answers(model, TOKENIZER, [chat_of("Hi"), chat], Sampling(max_new_tokens=3))


def test_a_rendered_chat_gets_no_second_token_of_its_beginning(letters: Any) -> None:
    starting = byte_tokenizer()
    starting.add_special_tokens({"bos_token": "<|startoftext|>"})
    starting.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|startoftext|> $A", special_tokens=[("<|startoftext|>", starting.bos_token_id)]
    )
    assert starting("a")["input_ids"][0] == starting.bos_token_id
    given: list[list[int]] = []
    handle = letters.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: given.append(inputs[0][0].tolist())
    )
    try:
        answers(letters, starting, [chat_of("Hi")], Sampling(max_new_tokens=1))
    finally:
        handle.remove()
    assert given[0] == prompt_ids(chat_of("Hi"))


# Alone and in a batch


@pytest.fixture(scope="module")
def reader() -> Any:
    """A Llama with attention that counts: what it writes hangs on every token before."""
    torch.manual_seed(0)
    config = config_of("llama", len(TOKENIZER), eos_token_id=None, pad_token_id=None, initializer_range=0.4)
    return AutoModelForCausalLM.from_config(config).eval()


def likeliest_alone(model: Any, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens, each by a forward pass over all before it."""
    for _ in range(count):
        ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:]


def test_chats_of_unequal_length_are_answered_together_as_each_alone_in_their_order(reader: Any) -> None:
    chats = [chat_of(text) for text in ("Why is that so, and why not otherwise?", "Hi", "Be there at ten.", "No", "Go")]
    stops = Renderer(TOKENIZER).stop_tokens
    wanted = []
    for chat in chats:
        ids = likeliest_alone(reader, prompt_ids(chat), 12)
        end = next((place for place, token in enumerate(ids) if token in stops), 12)
        wanted.append(TOKENIZER.decode(ids[:end], skip_special_tokens=True).strip())
    assert len(set(wanted)) == 5
    done: list[int] = []
    assert answers(reader, TOKENIZER, chats, Sampling(max_new_tokens=12), 2, done.append) == wanted
    assert done == [2, 4, 5]
    assert answers(reader, TOKENIZER, chats, Sampling(max_new_tokens=12)) == wanted


def test_a_seed_is_set_once_and_batches_are_drawn_one_after_another(letters: Any) -> None:
    chats = [chat_of("same")] * 3
    found = answers(letters, TOKENIZER, chats, replace(DRAWN, repetition_penalty=1.0), 1)
    assert len(set(found)) == 3
    assert found[0] == answers(letters, TOKENIZER, chats[:1], replace(DRAWN, repetition_penalty=1.0))[0]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_what_reads_and_writes_apart_reads_unequal_texts_together_as_each_alone(family: str) -> None:
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
    wanted = []
    for text in texts:
        read: Tensor = tokenizer(text, return_tensors="pt")["input_ids"]
        assert int(read[0, -1]) == tokenizer.eos_token_id
        ids = [tokenizer.pad_token_id]
        while len(ids) < 9 and tokenizer.eos_token_id not in ids:
            ids.append(int(model(input_ids=read, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        wanted.append(tokenizer.decode(ids[1:], skip_special_tokens=True).strip())
    assert len(set(wanted)) > 1
    assert answers(model, tokenizer, [chat_of(text) for text in texts], Sampling(max_new_tokens=8)) == wanted
