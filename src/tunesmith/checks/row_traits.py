"""The traits of many rows at once, and the groups of people that they name, by a compiled kernel (`traits.h`)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks import encoding, injections, native
from tunesmith.checks.groups import NEGATIVE, POSITIVE, Lexicon
from tunesmith.checks.record import Record
from tunesmith.checks.shingles import encoded
from tunesmith.checks.traits import EVERY, Trait

_CLASSES = (
    (1, "[0-9A-Za-z]"),
    (2, "[0-9]"),
    (4, r"[ .\-/()A-Z]"),
    (8, r"[0-9A-Za-z+/_.=-]"),
    (16, "[0-9a-fA-F:]"),
    (32, r"[A-Za-z0-9+/_\-.=!@#$%^&*~]"),
    (64, r"\s"),
    (128, r"[@<\[#&:=]"),
)
"""Bits of the bytes below 128, as in `traits.h`."""

HINTS = 64
"""Bits for sets of words that orders have, and for words of terms of several words."""

_SENTIMENT = 16
"""Bits of a trait behind which are those of praise and blame."""

_BAD, _HIDES = 16, 32
"""Bits of all code points, as in `traits.h`; the first four are of pairs of characters."""


@dataclass(frozen=True)
class RowTraits:
    """What some rows have.

    Attributes:
        traits: (rows,) uint32, of `Trait`.
        groups: (rows,): bits of the groups that are named.
        sentiment: (rows,): praise and blame.
    """

    traits: NDArray[np.uint32]
    groups: Sequence[int]
    sentiment: Sequence[int]


class TraitReader:
    """Finds the traits of rows.

    Args:
        lexicon: words for groups of people, praise and blame.
    """

    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        sets = [*dict.fromkeys(hints for wording in injections.WORDINGS for hints in wording.hints)]
        self._orders = [sum(1 << sets.index(hints) for hints in wording.hints) for wording in injections.WORDINGS]
        phrases = _dealt(lexicon, range(len(sets), HINTS))
        self._phrases = {
            bit: [term.encode() for key in keys for term, _ in lexicon.phrases[key]] for bit, keys in phrases.items()
        }
        words = _known_words(lexicon, sets, phrases)
        keys = [*words]
        self._bytes = np.frombuffer(b"".join(keys) or b"\0", np.uint8)
        self._offsets = np.cumsum([0, *map(len, keys)], dtype=np.int64)
        self._groups, self._hints = (np.array([each[at] for each in words.values()], np.uint64) for at in (0, 1))
        self._traits = np.array([each[2] for each in words.values()], np.uint32)
        self._slots = np.zeros(2 << len(keys).bit_length(), np.int32)
        if native.library() is not None:
            native.call("index_words", self._bytes, self._offsets, len(keys), self._slots, len(self._slots))

    def of(self, records: Sequence[Record]) -> RowTraits:
        """The traits of rows: all that one of their texts has, and perhaps more.

        Args:
            records: of the rows.

        Returns:
            Every trait for every row where there are no compiled kernels. Groups and sentiment are exact.
        """
        if native.library() is None or not records:
            bits = [self._lexicon.bits(record) for record in records]
            every = np.full(len(records), int(EVERY), np.uint32)
            return RowTraits(every, [each[0] for each in bits], [each[1] for each in bits])
        texts: list[str] = []
        firsts: list[int] = []
        for record in records:
            firsts.append(len(texts))
            texts += record.every_text
        content, offsets, _ = encoded(texts)
        traits, groups = np.empty(len(texts), np.uint32), np.empty(len(texts), np.uint64)
        hints = np.empty(len(texts), np.uint64)
        native.call(
            "traits_of", content, offsets, len(texts), _classes(), marked(), self._bytes, self._offsets, self._slots,
            len(self._slots), self._groups, self._hints, self._traits, traits, groups, hints,
        )  # fmt: skip
        traits, groups, hints = (np.bitwise_or.reduceat(each, firsts) for each in (traits, groups, hints))
        return self._of_rows(records, traits, groups, hints, content, offsets[[*firsts, -1]])

    def _of_rows(
        self,
        records: Sequence[Record],
        traits: NDArray[np.uint32],
        named: NDArray[np.uint64],
        hints: NDArray[np.uint64],
        content: NDArray[np.uint8],
        offsets: NDArray[np.int64],
    ) -> RowTraits:
        for needed in map(np.uint64, self._orders):
            traits[(hints & needed) == needed] |= np.uint32(Trait.ORDERS)
        groups, sentiment, has = (
            named.tolist(),
            (traits >> np.uint32(_SENTIMENT) & np.uint32(POSITIVE | NEGATIVE)).tolist(),
            traits.tolist(),
        )
        shown = (hints & np.uint64(sum(1 << bit for bit in self._phrases))).tolist()
        words = int(Trait.WORDS)
        for row in np.flatnonzero(traits & np.uint32(Trait.WORDS | Trait.PHRASE)).tolist():
            text = content[offsets[row] : offsets[row + 1]].tobytes()
            if has[row] & words or self._has_phrase(text, shown[row]):
                groups[row], sentiment[row] = self._lexicon.bits(records[row])
        return RowTraits(traits, groups, sentiment)

    def _has_phrase(self, text: bytes, hints: int) -> bool:
        """Whether a term of several words may be in the row."""
        low = text.lower()
        while hints:
            bit = hints.bit_length() - 1
            if any(term in low or not term.isascii() for term in self._phrases[bit]):
                return True
            hints ^= 1 << bit
        return False


def _dealt(lexicon: Lexicon, bits: Sequence[int]) -> dict[int, list[bytes]]:
    """The words that show that a term of several words may be there, by the bit that stands for some of them."""
    keys = sorted(lexicon.phrases)
    return {bit: found for number, bit in enumerate(bits) if (found := keys[number :: len(bits)])}


def _known_words(
    lexicon: Lexicon, sets: Sequence[frozenset[bytes]], phrases: Mapping[int, Sequence[bytes]]
) -> dict[bytes, tuple[int, int, int]]:
    """Groups, hints and traits by word; a word beyond ASCII by its ASCII letters, behind a byte 255."""
    found: dict[bytes, tuple[int, int, int]] = {}

    def add(word: bytes, groups: int = 0, hints: int = 0, traits: int = 0) -> None:
        if not word.isascii():
            word = b"\xff" + bytes(byte for byte in word if byte < 128)
            groups, hints, traits = 0, 0, int(Trait.WORDS)
        known = found.get(word, (0, 0, 0))
        found[word] = known[0] | groups, known[1] | hints, known[2] | traits

    for word, bits in lexicon.words.items():
        add(word, groups=bits)
    for bit, keys in phrases.items():
        for word in keys:
            add(word, hints=1 << bit, traits=int(Trait.PHRASE))
    for word, bits in lexicon.rated.items():
        add(word, traits=bits << _SENTIMENT)
    for number, hinted in enumerate(sets):
        for word in hinted:
            add(word, hints=1 << number)
    return found


@cache
def _classes() -> NDArray[np.uint8]:
    found = np.zeros(128, np.uint8)
    for bit, pattern in _CLASSES:
        for code in range(128):
            if re.match(pattern, chr(code)):
                found[code] |= bit
    return found


@cache
def marked() -> NDArray[np.uint8]:
    """Of each code point, whether it is a character that a check looks for."""
    found = np.zeros(0x110000, np.uint8)
    everything = "".join(map(chr, range(0x110000)))
    classes = [each for pair in encoding.DECODED_TWICE for each in pair]
    patterns = [*((1 << bit, f"[{each}]") for bit, each in enumerate(classes)), (_BAD, encoding.BAD)]
    for bit, pattern in (*patterns, (_HIDES, injections.HIDES)):
        for match in re.finditer(pattern, everything):
            found[match.start() : match.end()] |= bit
    return found
