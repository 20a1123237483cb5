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

BLOCK = 256
"""Scores of which one maximum is taken first."""

RRF = 60
"""The constant of reciprocal rank fusion (Cormack et al. 2009)."""

WEIGHT = 0.9
"""Of the cosine in the weighted sum, unless it is tuned: the best on three sets (benchmarks/retrieval_quality.py)."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Chunks in order.

    Attributes:
        chunks: (found,) their numbers, the best first.
        scores: (found,) descending.
    """

    chunks: NDArray[np.int64]
    scores: Scores


def best(scores: Scores, count: int, above: float = -np.inf) -> Ranked:
    """The chunks with the highest scores; of equal ones, the first in the index.

    Args:
        scores: (chunks,).
        count: how many at most.
        above: only scores that are higher.

    Returns:
        The chunks, in order.
    """
    found = _promising(scores, count, above)
    values = scores[found]
    if count < len(found):
        least = np.partition(values, len(values) - count)[len(values) - count]
        over, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
        chosen = np.concatenate([over, equal[: count - len(over)]])
        found, values = found[chosen], values[chosen]
    order = np.lexsort((found, -values))
    return Ranked(found[order], values[order])


def _promising(scores: Scores, count: int, above: float) -> NDArray[np.int64]:
    """Chunks among which the best are. The count-th highest of the blocks' maxima is not above the count-th highest
    score, and takes one pass over the scores."""
    blocks = len(scores) // BLOCK
    if count < blocks:
        maxima = scores[: blocks * BLOCK].reshape(blocks, BLOCK).max(axis=1)
        least = np.partition(maxima, blocks - count)[blocks - count]
        if least > above:
            return np.flatnonzero(scores >= least)
    return np.flatnonzero(scores > above)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best chunks by BM25 and by the cosine, with both scores, from which every way's order follows.

    Attributes:
        chunks: (candidates,) their numbers, ascending.
        text: their BM25 (candidates,).
        cosines: theirs (candidates,); None without vectors.
    """

    chunks: NDArray[np.int64]
    text: Scores
    cosines: Scores | None

    def ranked(self, way: str, weight: float, count: int) -> Ranked:
        """The best chunks of a way, in order.

        Args:
            way: a name in `WAYS`.
            weight: of the cosine in the weighted sum.
            count: how many at most; no more than the candidates were chosen for.

        Returns:
            The chunks.
        """
        found = WAYS[way](self.text, self.cosines, weight, count)
        return Ranked(self.chunks[found.chunks], found.scores)


def by_text(text: Scores, cosines: Scores | None, weight: float, count: int) -> Ranked:
    """By BM25; chunks without a word of the question are left out. Arguments are those of every `Way`."""
    return best(text, count, above=0)


def by_vectors(text: Scores, cosines: Scores | None, weight: float, count: int) -> Ranked:
    """By the cosine."""
    assert cosines is not None
    return best(cosines, count)


def by_ranks(text: Scores, cosines: Scores | None, weight: float, count: int) -> Ranked:
    """Reciprocal rank fusion: Σ 1 / (60 + rank), over both orders."""
    assert cosines is not None
    depth = max(DEPTH, count)
    totals: dict[int, float] = {}
    for order in (best(text, depth, above=0), best(cosines, depth)):
        for rank, chunk in enumerate(order.chunks.tolist(), start=1):
            totals[chunk] = totals.get(chunk, 0.0) + 1 / (RRF + rank)
    return _of(list(totals), np.array(list(totals.values()), np.float32), count)


def by_sum(text: Scores, cosines: Scores | None, weight: float, count: int) -> Ranked:
    """w (cos + 1) / (max cos + 1) + (1 − w) BM25 / max BM25: each score from its least possible value to the question's
    highest one (Bruch et al. 2023, equation 6)."""
    assert cosines is not None
    depth = max(DEPTH, count)
    found = np.union1d(best(text, depth, above=0).chunks, best(cosines, depth).chunks)
    if not len(found):
        return Ranked(found, np.zeros(0, np.float32))
    dense = (cosines[found] + 1) / max(float(cosines.max()) + 1, 1e-6)
    words = text[found] / max(float(text.max()), 1e-6)
    return _of(found, (weight * dense + (1 - weight) * words).astype(np.float32), count)


Way = Callable[[Scores, Scores | None, float, int], Ranked]

WAYS: dict[str, Way] = {"text": by_text, "dense": by_vectors, "rrf": by_ranks, "weighted": by_sum}
"""By name. Each takes the BM25 scores and the cosines (chunks,), the cosine's weight, and the most chunks to return."""


def _of(chunks: NDArray[np.int64] | list[int], scores: Scores, count: int) -> Ranked:
    numbers = np.asarray(chunks, np.int64)
    order = np.lexsort((numbers, -scores))[:count]
    return Ranked(numbers[order], scores[order])
