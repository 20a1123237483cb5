"""Texts that are nearly the same: candidates by MinHash (Broder 1997), each verified by exact Jaccard similarity."""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIMILAR = 0.8
"""The Jaccard similarity from which texts are near-duplicates (Lee et al. 2022 use the same)."""

SHINGLE = 3
"""Words in a row that count as one element of a text."""

BANDS, ROWS_PER_BAND = 32, 4
"""Texts with similarity s are compared with probability 1 − (1 − s⁴)³²: 0.9999999 at 0.8, 0.08 at 0.2."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two texts that are nearly the same.

    Attributes:
        text: index among the texts.
        other: index of the most similar one among the others.
        similarity: of the two, the Jaccard similarity of their shingles.
    """

    text: int
    other: int
    similarity: float


def near_duplicates(texts: Sequence[str], others: Sequence[str], least: float = SIMILAR) -> list[NearDuplicate]:
    """The texts that have a near-duplicate among others.

    Args:
        texts: each is looked up.
        others: where it is looked up.
        least: the similarity from which two texts are near-duplicates.

    Returns:
        In the order of the texts, each with the most similar other text.
    """
    sets, other_sets = [shingles(text) for text in texts], [shingles(text) for text in others]
    candidates: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, elements in enumerate(other_sets):
        for key in bands(elements):
            candidates[key].append(index)
    found = []
    for index, elements in enumerate(sets):
        near = {other for key in bands(elements) for other in candidates.get(key, ())}
        best = max(((jaccard(elements, other_sets[other]), -other) for other in near), default=(0.0, 0))
        if best[0] >= least:
            found.append(NearDuplicate(index, -best[1], best[0]))
    return found


def shingles(text: str) -> frozenset[int]:
    """Hashes of the runs of three words in a text, whatever their case and the punctuation between them.

    Args:
        text: any text.

    Returns:
        32-bit hashes; one of the whole text if it has fewer words.
    """
    words = _WORD.findall(text.casefold())
    runs = (" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1)))
    return frozenset(zlib.crc32(run.encode()) for run in runs)


def jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """|A ∩ B| / |A ∪ B|."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def bands(elements: frozenset[int]) -> Iterator[tuple[int, bytes]]:
    """What texts with the same minimal hashes in a band have in common.

    Args:
        elements: of a text, from `shingles`.

    Yields:
        Each band's number and minimal hashes.
    """
    values = np.fromiter(elements, np.uint64, len(elements))[:, None]
    mixed = values * _FIRST + _SECOND  # modulo 2⁶⁴, as all of these
    hashed = (mixed ^ (mixed >> np.uint64(32))) * _FIRST
    minima = hashed.min(axis=0).reshape(BANDS, ROWS_PER_BAND)
    for band in range(BANDS):
        yield band, minima[band].tobytes()


def _constants() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Odd factors and terms of as many hash functions as there are rows in all bands."""
    draw = np.random.default_rng(0)
    first, second = (draw.integers(0, 1 << 63, BANDS * ROWS_PER_BAND, np.uint64) for _ in range(2))
    return first * np.uint64(2) + np.uint64(1), second


_FIRST, _SECOND = _constants()
