"""The text and the bytes of single tokens, in the words of OpenAI's protocol."""

import pytest
from bytewise import byte_tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tunesmith.serving.choices import BYTE_LEVEL, TokenTexts


def test_the_characters_of_byte_level_tokens_are_gpt_2s() -> None:
    assert {character: byte for byte, character in bytes_to_unicode().items()} == BYTE_LEVEL


@pytest.mark.parametrize("text", ["a", " ", "ß", "日", "🙂"])
def test_the_bytes_of_a_texts_tokens_are_those_of_the_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    texts = TokenTexts(tokenizer)
    entries = [texts.entry(token, -1.5) for token in tokenizer(text)["input_ids"]]
    assert bytes(byte for entry in entries for byte in entry["bytes"]) == text.encode()
    assert {entry["logprob"] for entry in entries} == {-1.5}
    assert texts.entry(0, float("-inf"))["logprob"] == -9999.0, "which JSON can express"
    assert texts.of(0) is texts.of(0), "a token is decoded once"
