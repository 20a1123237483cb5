"""Facility location by lazy greedy: rows that together stand for all rows.

f(S) = Σᵢ max_{j ∈ S} s(i, j) is monotone and submodular for s ≥ 0, so the greedy choice of n rows reaches at least
1 − 1/e of the best value of n rows (Nemhauser et al. 1978). Gains only shrink as rows are chosen, so a row whose old
gain is not the largest need not be computed again (Minoux 1978).
"""

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Similarities = NDArray[np.float64]


def facility_location(
    gains: Similarities, similarities: Callable[[int], Similarities], count: int, done: Callable[[int], None]
) -> list[int]:
    """Choose rows greedily.

    Args:
        gains: (rows,) of each row alone: the sum of its similarities to all rows.
        similarities: of a row to all rows (rows,), none of them negative.
        count: how many rows to choose.
        done: called with the number of chosen rows, as it grows.

    Returns:
        The rows, in the order in which they were chosen; of equal gains the first row.
    """
    covered = np.zeros(len(gains))
    waiting = [(-float(gain), row) for row, gain in enumerate(gains)]
    heapq.heapify(waiting)
    fresh = {row: 0 for _, row in waiting}
    chosen: list[int] = []
    while waiting and len(chosen) < count:
        _, row = heapq.heappop(waiting)
        own = similarities(row)
        if fresh[row] != len(chosen):
            fresh[row] = len(chosen)
            heapq.heappush(waiting, (-float(np.maximum(own - covered, 0).sum()), row))
            continue
        covered = np.maximum(covered, own)
        chosen.append(row)
        done(len(chosen))
    return chosen


def by_words(texts: list[str]) -> tuple[Similarities, Callable[[int], Similarities]]:
    """Similarities by shared words and pairs of words: the cosine of TF-IDF vectors, without a model.

    Args:
        texts: of the rows.

    Returns:
        What `facility_location` needs.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+", dtype=np.float64)
    vectors: Any = words.fit_transform(texts)
    gains = np.asarray(vectors @ np.asarray(vectors.sum(axis=0)).ravel()).ravel()
    dense = np.zeros(vectors.shape[1])  # six times as fast as products of two sparse matrices

    def similarities(row: int) -> Similarities:
        own = slice(vectors.indptr[row], vectors.indptr[row + 1])
        dense[vectors.indices[own]] = vectors.data[own]
        found: Similarities = vectors @ dense
        dense[vectors.indices[own]] = 0
        return found

    return gains, similarities


def by_vectors(vectors: NDArray[np.floating]) -> tuple[Similarities, Callable[[int], Similarities]]:
    """Similarities by an encoder: (1 + cosine) / 2, which is never negative.

    Args:
        vectors: (rows, hidden).

    Returns:
        What `facility_location` needs.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = vectors / np.maximum(lengths, 1e-12)
    gains = (len(scaled) + scaled @ scaled.sum(axis=0)) / 2
    return np.asarray(gains, np.float64), lambda row: np.asarray((1 + scaled @ scaled[row]) / 2, np.float64)
