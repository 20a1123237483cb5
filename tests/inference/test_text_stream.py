"""Streamed pieces join to the whole text, hold complete characters only, and nothing of a stop text."""

from collections.abc import Sequence
from typing import Any

import pytest
from bytewise import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunesmith.inference.text_stream import INCOMPLETE, TextStream

TOKENIZER = byte_tokenizer()

some = settings(max_examples=80)
texts = st.text(max_size=12)
few_letters = st.text("abé", max_size=14)


def spoken(ids: Sequence[int], stop: Sequence[str] = (), tokenizer: Any = TOKENIZER) -> tuple[list[str], TextStream]:
    """The pieces of the tokens until a stop text, and the rest."""
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


@some
@given(text=texts)
def test_pieces_join_to_the_text_and_hold_complete_characters_only(text: str) -> None:
    pieces, stream = spoken(ids_of(text))
    assert "".join(pieces) == TOKENIZER.decode(ids_of(text)) == text
    assert not stream.stopped
    if INCOMPLETE not in text:
        assert not any(INCOMPLETE in piece for piece in pieces)
        assert [piece for piece in pieces if piece] == list(text), "each character as soon as its last byte is there"


@some
@given(ids=st.lists(st.integers(0, 255), max_size=16))
def test_bytes_that_are_no_text_are_written_as_the_tokenizer_writes_them(ids: list[int]) -> None:
    pieces, _ = spoken(ids)
    assert "".join(pieces) == TOKENIZER.decode(ids)


def test_special_tokens_are_left_out() -> None:
    special = TOKENIZER.convert_tokens_to_ids("<|im_start|>")
    pieces, _ = spoken([*ids_of("aé")[:2], special, *ids_of("b"), special])
    assert "".join(pieces) == TOKENIZER.decode([*ids_of("aé")[:2], *ids_of("b")])
    assert "".join(spoken([special, *ids_of("ab"), special])[0]) == "ab"


def test_spaces_before_words_are_kept_and_the_first_is_as_the_tokenizer_writes_it() -> None:
    """As in SentencePiece, the decoder drops the space before a text's first word."""
    words = ["▁the", "▁cat", "s", "▁"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="s"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    pieces, _ = spoken([0, 1, 2, 1, 0], tokenizer=fast)
    assert "".join(pieces) == fast.decode([0, 1, 2, 1, 0]) == "the cats cat the"


# Stop texts


@some
@given(text=few_letters, stop=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_text(text: str, stop: list[str]) -> None:
    """Before the one that is complete first; of several that are complete at the same time, the longest."""
    expected, stops = text, False
    for end in range(1, len(text) + 1):
        starts = [text[:end].find(each) for each in stop if each in text[:end]]
        if starts:
            expected, stops = text[: min(starts)], True
            break
    pieces, stream = spoken(ids_of(text), stop)
    assert "".join(pieces) == expected
    assert stream.stopped == stops


@some
@given(text=few_letters, stop=st.text("abé", min_size=1, max_size=4))
def test_only_what_may_begin_a_stop_text_is_held_back(text: str, stop: str) -> None:
    stream = TextStream(TOKENIZER, [stop])
    written, tokens = "", ids_of(text)
    for token in tokens:
        written += stream.add(token)
    if not stream.stopped:
        held = text[len(written) :]
        assert held == "" or stop.startswith(held)
        assert len(held) < len(stop)
        assert written + stream.finish() == text


@pytest.mark.parametrize(
    ("token_texts", "stop", "expected"),
    [
        pytest.param(["one ", "EN", "D two"], ["END"], "one ", id="across tokens"),
        pytest.param(["oneEND two"], ["END"], "one", id="within a token"),
        pytest.param(["E", "E", "N", "D"], ["END"], "E", id="after a false beginning"),
        pytest.param(["EN", "x"], ["END"], "ENx", id="a beginning only"),
        pytest.param(["EN"], ["END"], "EN", id="a beginning at the end"),
        pytest.param(["END"], ["END"], "", id="at once"),
        pytest.param(["a", "\nb"], ["", "\n"], "a", id="an empty stop text is none"),
        pytest.param(["a b", " c"], ["c", "b "], "a ", id="one of several"),
    ],
)
def test_stop_texts_are_found_across_tokens(token_texts: list[str], stop: list[str], expected: str) -> None:
    alphabet = {text: number for number, text in enumerate(dict.fromkeys(token_texts))}
    tokenizer = Tokenizer(models.WordLevel(alphabet, unk_token=token_texts[0]))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    pieces, stream = spoken([alphabet[text] for text in token_texts], stop, fast)
    assert "".join(pieces) == expected
    assert stream.stopped == (expected != "".join(token_texts))
    assert stream.finish() == ""
