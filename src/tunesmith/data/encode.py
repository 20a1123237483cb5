"""Texts to token ids with the tokenizer's own library; word by word where a word's tokens do not depend on others."""

import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE

WORDS = 2**17
"""Words in the cache, about 40 MB; when it is full, it is cleared."""

WORD = re.compile(r"(?s:.)[^ ]*(?: (?<![\w!-~] )[^ ]*)*")
"""A word, with the space before it. It ends before a space that follows a character that no regular expression takes
for white space."""

ALTERNATIVES = frozenset(
    [
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", r"'(?:[sdmt]|ll|ve|re)", r"'(?:[sdmt]|ll|ve|re)\b"),
        *("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?i:[sdmt]|ll|ve|re)"),
        *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"),
        *(
            rf"[^\r\n\p{{L}}\p{{N}}]?{first}{then}{end}"
            for first, then in (
                (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"),
                (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"),
            )
            for end in ("", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?")
        ),
        *(r" ?\p{N}+", r"\p{N}", r"\p{N}{1,3}"),
        *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
    ]
)
"""The alternatives in the regular expressions of well-known tokenizers (GPT-2, cl100k, o200k, Llama 3, Qwen).

None matches a space after a character that is not white space, or looks behind, or looks ahead at anything but white
space and the end of a word. So a match of any of them ends where a `WORD` does, and the text after it matches as if
nothing came before it: words can be tokenized independently.
"""

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern that `ByteLevel` uses by default."""


class Encoded(Protocol):
    """A text's tokens."""

    @property
    def ids(self) -> Sequence[int] | NDArray[np.int32]: ...

    def at(self, char: int) -> tuple[int, bool]:
        """The index of the first token that begins at or after the character; and whether the token before it ends
        exactly there."""


class TextEncoder:
    """Tokenizes texts as they are: no special tokens are added, nothing is truncated.

    Args:
        backend: from the tokenizers library.
        split_special: read the text of a special token as plain characters, as in raw text.
    """

    def __init__(self, backend: Tokenizer, split_special: bool = False) -> None:
        self._backend = backend
        self._split_special = split_special
        added = [each for each in backend.get_added_tokens_decoder().values() if not (split_special and each.special)]
        self._splits_words = _can_split_words(backend) and not any(
            each.lstrip or each.rstrip or each.single_word or each.normalized for each in added
        )
        contents = sorted((each.content for each in added), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, contents))})") if contents else None
        self._cache = _WordCache({}, {})

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text's tokens, exactly as the library gives them for the full text."""
        if not self._splits_words:
            return [_OneCall(each) for each in self._by_library(texts)]
        words = [self._words_of(text) if _is_normal(text) else None for text in texts]
        cache = self._look_up(words)
        rest = iter(self._by_library([text for text, each in zip(texts, words, strict=True) if each is None]))
        return [_OneCall(next(rest)) if each is None else _Joined(each, cache) for each in words]

    def _words_of(self, text: str) -> list[str]:
        if self._added is None:
            return WORD.findall(text)
        words: list[str] = []
        for index, part in enumerate(self._added.split(text)):
            if index % 2:
                words.append(part)
            else:
                words.extend(WORD.findall(part))
        return words

    def _look_up(self, texts: Sequence[list[str] | None]) -> "_WordCache":
        """The word cache, with all of these words in it."""
        words = set(chain.from_iterable(text for text in texts if text is not None))
        if len(self._cache.ids) > WORDS:
            self._cache = _WordCache({}, {})
        ids, offsets = self._cache
        new = [word for word in words if word not in ids]
        for word, encoding in zip(new, self._by_library(new), strict=True):
            ids[word] = np.asarray(encoding.ids, np.int32).tobytes()
            offsets[word] = encoding.offsets
        return self._cache

    def _by_library(self, texts: Sequence[str]) -> list[Encoding]:
        """On all cores, while other threads keep running."""
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = self._split_special
        encodings: list[Encoding] = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return encodings


class _OneCall:
    """A text's tokens, from one call of the library."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self.ids = encoding.ids

    def at(self, char: int) -> tuple[int, bool]:
        token = self._encoding.char_to_token(char)
        if token is not None and self._span(token)[0] == char and (char == 0 or self._span(token - 1)[1] == char):
            return token, True
        offsets = self._encoding.offsets  # some tokenizers skip characters: look at every token's position
        index = sum(begin < char for begin, _ in offsets)
        return index, char == 0 or max((end for _, end in offsets[:index]), default=0) == char

    def _span(self, token: int) -> tuple[int, int]:
        return (self._encoding.token_to_chars(token) if token >= 0 else None) or (-1, -1)


class _WordCache(NamedTuple):
    """Words' tokens: ids as int32 bytes, and the (start, end) of each token in characters."""

    ids: dict[str, bytes]
    offsets: dict[str, list[tuple[int, int]]]


class _Joined:
    """A text's tokens, word by word."""

    def __init__(self, words: list[str], cache: _WordCache) -> None:
        self._words, self._offsets = words, cache.offsets
        self._parts = [cache.ids[word] for word in words]
        self.ids = np.frombuffer(b"".join(self._parts), np.int32)

    def at(self, char: int) -> tuple[int, bool]:
        ends = list(accumulate(map(len, self._words)))
        word = bisect_right(ends, char)
        start = ends[word - 1] if word else 0
        inside = self._offsets[self._words[word]] if char > start else []
        within = sum(begin < char - start for begin, _ in inside)
        index = len(b"".join(self._parts[:word])) // 4 + within
        if char == 0 or within:
            return index, char == 0 or inside[within - 1][1] == char - start
        return index, char == start and self._is_full(self._words[word - 1])

    def _is_full(self, word: str) -> bool:
        """Whether the word's last token ends where the word ends."""
        offsets = self._offsets[word]
        return bool(offsets) and offsets[-1][1] == len(word)


def _is_normal(text: str) -> bool:
    return text.isascii() or unicodedata.is_normalized("NFC", text)


def _can_split_words(backend: Tokenizer) -> bool:
    """Whether words can be tokenized independently: byte-level BPE after a known pre-tokenizer."""
    model = backend.model
    if not isinstance(model, BPE) or model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if backend.normalizer is not None and _state(backend.normalizer) != {"type": "NFC"}:
        return False
    if backend.post_processor is not None and '"trim_offsets":true' in _json(backend.post_processor):
        return False  # a token's offsets would depend on the text before it
    *before, last = _sequence(_state(backend.pre_tokenizer)) if backend.pre_tokenizer is not None else [{}]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return False
    patterns = [GPT_2] if last["use_regex"] else []
    for each in before:
        if each["type"] == "Split" and each["behavior"] == "Isolated" and not each["invert"]:
            patterns.append(each["pattern"].get("Regex", ""))
        elif not (each["type"] == "Digits" and each["individual_digits"]):
            return False
    return len(patterns) == 1 and set(_alternatives(patterns[0])) <= ALTERNATIVES and r"|\s+" in patterns[0]


def _json(part: Any) -> str:
    """A component of a tokenizer, as in `tokenizer.json`."""
    return part.__getstate__().decode("utf-8")  # type: ignore[no-any-return]


def _state(part: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(_json(part))
    return state


def _sequence(state: dict[str, Any]) -> list[dict[str, Any]]:
    return state["pretokenizers"] if state["type"] == "Sequence" else [state]


def _alternatives(pattern: str) -> Iterator[str]:
    """The parts of the pattern between `|` outside brackets."""
    depth, start = 0, 0
    for index, symbol in enumerate(pattern):
        depth += (symbol in "([") - (symbol in ")]")
        if symbol == "|" and depth == 0:
            yield pattern[start:index]
            start = index + 1
    yield pattern[start:]
