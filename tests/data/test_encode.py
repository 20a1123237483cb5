"""Encoding a text word by word gives the same tokens as the library gives for the full text."""

from itertools import product

import numpy as np
import pytest
from combinations import few
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tunesmith.data import encode
from tunesmith.data.encode import TextEncoder

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama 3": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}",
    "qwen 2": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE = {
    "gpt 2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    **{
        name: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])
        for name, pattern in PATTERNS.items()
    },
}
CORPUS = [
    "The quick brown fox, it's said, jumps over 1234 lazy dogs.\n\n  def f(x):\n\treturn x + 1  # why not?\r\n",
    "Größe und Länge; c'est l'été. Всё хорошо 你好 世界 — “quoted” … 3.14 % of $5,000!  ",
] * 4
MARKS = ["<|im_start|>", "<|im_end|>", "<|im|>"]


def tokenizer(name: str, normalized: bool = False) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = PRE[name]
    backend.decoder = decoders.ByteLevel()
    if normalized:
        backend.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return backend


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [*MARKS, "<tool>", " ", "  ", "\n", "\r\n", "\t", " \n ", "'s", "'LL", "12", "3456", "é", "e\u0301"]
        ),
        st.sampled_from(
            ["word", "Word,", "--", "...", "\x1c", "\x85", "\xa0", "\u200b", "\u3000", "你好", "x", "/", "!"]
        ),
        st.text(max_size=4),
    ),
    max_size=14,
).map("".join)


@pytest.mark.parametrize(
    ("name", "normalized", "split_special"),
    few(
        product(PRE, (False, True), (False, True)),
        [*((name, True, True) for name in PRE), *product(["llama 3"], (False, True), (False, True))],
    ),
)
def test_words_have_the_same_tokens_and_offsets_as_the_full_text(name, normalized, split_special):
    backend = tokenizer(name, normalized)
    encoder = TextEncoder(backend, split_special)
    assert encoder._splits_words

    @settings(max_examples=60)
    @given(st.lists(TEXTS, max_size=4))
    def tokens_are_equal(texts):
        texts = [text for text in texts if text.encode("utf-8", "ignore").decode() == text]
        encoded = encoder.encode(texts)
        for text, actual, expected in zip(texts, encoded, encoder._by_library(texts), strict=True):
            assert list(actual.ids) == expected.ids
            for char in range(len(text) + 1):
                assert actual.at(char) == encode._OneCall(expected).at(char), (text, char)

    tokens_are_equal()


def test_the_word_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(encode, "WORDS", 10)
    encoder = TextEncoder(tokenizer("gpt 2"))
    for first in range(0, 100, 5):
        texts = [f"the {number} th" for number in range(first, first + 5)]
        assert [list(each.ids) for each in encoder.encode(texts)] == [each.ids for each in encoder._by_library(texts)]
        assert len(encoder._cache.ids) <= 10 + 7


def unknown_pattern(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\S+\s\S+|\s+"), "isolated"), BYTES])


def unknown_last_part(backend: Tokenizer) -> None:
    pattern = Regex(r" ?\p{L}+|\s+|\S+\s\S+")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), BYTES])


def greedy_mark(backend: Tokenizer) -> None:
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])


def lower_case(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Lowercase()


def prefix_space(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def trimmed_offsets(backend: Tokenizer) -> None:
    backend.post_processor = processors.ByteLevel(trim_offsets=True)


@pytest.mark.parametrize(
    "change",
    [trimmed_offsets, unknown_pattern, unknown_last_part, greedy_mark, lower_case, prefix_space],
)
def test_a_tokenizer_that_may_not_split_words_encodes_full_texts(change):
    backend = tokenizer("gpt 2")
    change(backend)
    encoder = TextEncoder(backend)
    assert not encoder._splits_words
    (encoded,) = encoder.encode(["The quick brown fox"])
    np.testing.assert_array_equal(encoded.ids, backend.encode("The quick brown fox", add_special_tokens=False).ids)
