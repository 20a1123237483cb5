"""Ways to order chunks for a question, from their BM25 scores and their cosines with it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]

Vectors = NDArray[np.float32]
"""(texts, hidden), of length 1."""

DEPTH = 100
"""Chunks of each order that are merged; those below change nothing near the top."""

RRF = 60
"""The constant of reciprocal rank fusion (Cormack et al. 2009)."""

WEIGHT = 0.8
"""Of the cosine in the weighted sum, unless it is tuned (Bruch et al. 2023, section 4.2)."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Chunks in order.

    Attributes:
        chunks: (found,) their numbers, the best first.
        scores: (found,) descending.
    """

    chunks: NDArray[np.int64]
    scores: Scores


def best(scores: Scores, count: int) -> Ranked:
    """The chunks with the highest scores; of equal ones, the first in the index.

    Args:
        scores: (chunks,).
        count: how many at most.

    Returns:
        The chunks, in order.
    """
    count = min(count, len(scores))
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        above = np.flatnonzero(scores > least)
        found = np.concatenate([above, np.flatnonzero(scores == least)[: count - len(above)]])
    else:
        found = np.arange(len(scores))
    order = np.lexsort((found, -scores[found]))
    return Ranked(found[order], scores[found[order]])


def by_text(text: Scores, cosines: Scores | None, weight: float, count: int) -> Ranked:
    """By BM25; chunks without a word of the question are left out. Arguments are those of every `Way`."""
    return _positive(best(text, count))


def by_vectors(text: Scores, cosines: Scores | None, weight: float, count: int) -> Ranked:
    """By the cosine."""
    assert cosines is not None
    return best(cosines, count)


def by_ranks(text: Scores, cosines: Scores | None, weight: float, count: int) -> Ranked:
    """Reciprocal rank fusion: Σ 1 / (60 + rank), over both orders."""
    assert cosines is not None
    depth = max(DEPTH, count)
    totals: dict[int, float] = {}
    for order in (_positive(best(text, depth)), best(cosines, depth)):
        for rank, chunk in enumerate(order.chunks.tolist(), start=1):
            totals[chunk] = totals.get(chunk, 0.0) + 1 / (RRF + rank)
    return _of(list(totals), np.array(list(totals.values()), np.float32), count)


def by_sum(text: Scores, cosines: Scores | None, weight: float, count: int) -> Ranked:
    """w (cos + 1) / (max cos + 1) + (1 − w) BM25 / max BM25: each score from its least possible value to the question's
    highest one (Bruch et al. 2023, equation 6)."""
    assert cosines is not None
    depth = max(DEPTH, count)
    found = np.union1d(best(text, depth).chunks, best(cosines, depth).chunks)
    if not len(found):
        return Ranked(found, np.zeros(0, np.float32))
    dense = (cosines[found] + 1) / max(float(cosines.max()) + 1, 1e-6)
    words = text[found] / max(float(text.max()), 1e-6)
    return _of(found, (weight * dense + (1 - weight) * words).astype(np.float32), count)


Way = Callable[[Scores, Scores | None, float, int], Ranked]

WAYS: dict[str, Way] = {"text": by_text, "dense": by_vectors, "rrf": by_ranks, "weighted": by_sum}
"""By name. Each takes the BM25 scores and the cosines (chunks,), the cosine's weight, and the most chunks to return."""


def _positive(ranked: Ranked) -> Ranked:
    count = int((ranked.scores > 0).sum())
    return Ranked(ranked.chunks[:count], ranked.scores[:count])


def _of(chunks: NDArray[np.int64] | list[int], scores: Scores, count: int) -> Ranked:
    numbers = np.asarray(chunks, np.int64)
    order = np.lexsort((numbers, -scores))[:count]
    return Ranked(numbers[order], scores[order])
