"""Texts as sets of shingles, runs of three words, and their MinHash sketches (Broder 1997).

Two texts are near-duplicates from a Jaccard similarity of 0.8 of these sets (Lee et al. 2022). Texts with similarity s
have one of the 24 bands of a sketch in common with probability 1 − (1 − s⁶)²⁴: 0.9993 at 0.8, 0.31 at 0.5. Where a
script does not separate words by spaces, as in Chinese, Japanese and Thai, each character is a word.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks import native

SIMILAR = 0.8
"""The Jaccard similarity from which texts are near-duplicates."""

SHINGLE = 3
"""Words in a row that count as one element of a text."""

BANDS, ROWS_PER_BAND = 24, 6
HASHES = BANDS * ROWS_PER_BAND

FACTORS = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)))
"""Odd factors of the hash functions."""

UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U000323af"
)
"""Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, ideographs."""

WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")

_TOP = np.uint64(32)


@dataclass(frozen=True)
class Shingled:
    """Some texts as sets.

    Attributes:
        shingles: (all,) uint32: of each text, sorted, one text after the other.
        counts: (texts,) uint32: how many each has; 0 of an empty text.
        bands: (texts, BANDS) uint32.
    """

    shingles: NDArray[np.uint32]
    counts: NDArray[np.uint32]
    bands: NDArray[np.uint32]


def shingled(texts: Sequence[str]) -> Shingled:
    """The texts as sets of shingles, with their sketches.

    Args:
        texts: as `normalized` returns them.

    Returns:
        The same with and without compiled kernels.
    """
    return _by_kernel(texts) if native.library() is not None and texts else by_definition(texts)


def by_definition(texts: Sequence[str]) -> Shingled:
    """As `shingled`, with NumPy."""
    sets = [_shingles(text) for text in texts]
    bands = np.array([_bands(each) for each in sets], np.uint32).reshape(len(sets), BANDS)
    empty = np.empty(0, np.uint32)
    return Shingled(np.concatenate([empty, *sets]), np.array([len(each) for each in sets], np.uint32), bands)


def _shingles(text: str) -> NDArray[np.uint32]:
    words = word_hashes(text)
    if not text:
        return np.empty(0, np.uint32)
    if not words:
        words = [zlib.crc32(text.encode("utf-8", "surrogatepass"))]
    values = np.array(words + [0] * (SHINGLE - len(words)), np.uint64)
    count = len(values) - SHINGLE + 1
    hashes = sum((values[i : i + count] * FACTORS[i] for i in range(SHINGLE)), np.zeros(count, np.uint64))
    return np.unique(((hashes ^ (hashes >> _TOP)) * FACTORS[3] >> _TOP).astype(np.uint32))


def _bands(shingles: NDArray[np.uint32]) -> NDArray[np.uint32]:
    if not len(shingles):
        return np.zeros(BANDS, np.uint32)
    factors, terms = _hash_functions()
    least = (shingles[:, None] * factors + terms).min(axis=0).reshape(BANDS, ROWS_PER_BAND)
    keys = np.zeros(BANDS, np.uint64)
    for column in least.T:
        keys = (keys ^ column) * FACTORS[0]
    return (keys >> _TOP).astype(np.uint32)


def _by_kernel(texts: Sequence[str]) -> Shingled:
    content, offsets, longest = encoded(texts)
    shingles = np.empty(len(content) + len(texts), np.uint32)
    counts, bands = np.empty(len(texts), np.uint32), np.empty((len(texts), BANDS), np.uint32)
    spare = np.empty(longest + SHINGLE, np.uint32)
    factors, terms = _hash_functions()
    total = native.call(
        "sketch_texts", content, offsets, len(texts), kinds(), factors, terms, shingles, counts, bands, spare
    )
    return Shingled(shingles[:total].copy(), counts, bands)


def encoded(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """Texts as kernels take them: their bytes, (texts + 1,) where each begins, and the most bytes of one.

    Args:
        texts: any.
    """
    each = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.array([0, *map(len, each)], np.int64)
    return np.frombuffer(b"".join(each) or b"\0", np.uint8), np.cumsum(lengths), int(lengths.max())


def word_hashes(text: str) -> list[int]:
    """CRC-32 of each word.

    Args:
        text: as `normalized` returns it.
    """
    return [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in WORD.findall(text)]


@cache
def _hash_functions() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Odd factors and terms of the permutations x ↦ a x + b modulo 2³². The shingles are well mixed already."""
    draw = np.random.default_rng(0)
    factors, terms = (draw.integers(0, 1 << 32, HASHES, np.uint32) for _ in range(2))
    return factors | np.uint32(1), terms


@cache
def kinds() -> NDArray[np.uint8]:
    """Of each code point: 0 if it separates words, 1 if it is in a word, 2 if it is a word of its own."""
    found = np.zeros(0x110000, np.uint8)
    everything = "".join(map(chr, range(0x110000)))
    for match in re.finditer(r"\w+", everything):
        found[match.start() : match.end()] = 1
    for match in re.finditer(f"[{UNSPACED}]+", everything):
        found[match.start() : match.end()] = 2
    return found
