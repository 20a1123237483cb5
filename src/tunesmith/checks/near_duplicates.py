"""Texts that are nearly the same as one of other texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.checks.near_runs import Sets, similar_rows
from tunesmith.checks.shingles import SIMILAR, shingled
from tunesmith.checks.sketch import normalized


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
    if not texts or not others:
        return []
    all_texts = shingled([normalized(text) for text in (*others, *texts)])
    sets = Sets(all_texts.shingles, all_texts.counts, all_texts.bands)
    pairs = similar_rows(sets, least, given=len(others))
    best: dict[int, tuple[float, int]] = {}
    for row, other, similarity in zip(
        *map(np.ndarray.tolist, (pairs.rows, pairs.others, pairs.similarities)), strict=True
    ):
        best[row] = max(best.get(row, (0.0, 0)), (similarity, -other))
    return [NearDuplicate(row - len(others), -other, similarity) for row, (similarity, other) in sorted(best.items())]
