"""How far several people agree who judged the same things: Krippendorff's alpha.

α = 1 − D_o / D_e, the observed disagreement within units over that of values paired at random (Krippendorff 2011,
"Computing Krippendorff's alpha-reliability"). Units may have different numbers of values.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.statistics.measured import Measured, ratio_of

Counts = NDArray[np.float64]
Distances = NDArray[np.float64]


def nominal(categories: int) -> Distances:
    """Values that are equal or not.

    Args:
        categories: how many there are.

    Returns:
        (categories, categories): 0 for equal values, else 1.
    """
    return 1 - np.eye(categories)


def interval(values: Sequence[float]) -> Distances:
    """Numbers whose differences count.

    Args:
        values: of the categories.

    Returns:
        (categories, categories) squared differences.
    """
    array = np.asarray(values, np.float64)
    return np.square(array[:, None] - array[None])


def krippendorff_alpha(counts: Counts, distances: Distances) -> float:
    """Krippendorff's alpha.

    Args:
        counts: (units, categories) how often a unit has a value; units with fewer than two values do not count.
        distances: (categories, categories) squared, of `nominal` or `interval`.

    Returns:
        1 if all agree, 0 as by chance, below 0 if they disagree more; 1 if no two values differ at all.

    Raises:
        ValueError: no unit has two values.
    """
    counts = counts[counts.sum(1) > 1]
    if not len(counts):
        raise ValueError("no unit has two values")
    per_unit = counts.sum(1)
    observed = float((np.einsum("uc,ck,uk->u", counts, distances, counts) / (per_unit - 1)).sum())
    pooled = counts.sum(0)
    total = float(pooled.sum())
    expected = float(pooled @ distances @ pooled) / (total - 1)
    return 1 - observed / expected if expected else 1.0


def agreement(counts: Counts, values: Sequence[float], units: Sequence[str]) -> dict[str, Measured]:
    """How far people agree on which of two is better, whose order means nothing.

    A unit's values are counted in both orders, x and 1 − x, so that chance is that of people who do not know which is
    which.

    Args:
        counts: (units, categories) as in `krippendorff_alpha`.
        values: of the categories: 1 if the first is better, 0 if the second is, 0.5 if neither.
        units: what the units are called; each has two values or more.

    Returns:
        `alpha`, and `share`: of all pairs of votes on the same unit, those that are equal.
    """
    distances, order = interval(values), np.argsort(values)
    mirrored = np.empty_like(counts)
    mirrored[:, order] = counts[:, order[::-1]]

    def alpha(rows: NDArray[np.int64]) -> float:
        return krippendorff_alpha(np.concatenate([counts[rows], mirrored[rows]]), distances)

    equal = (counts * (counts - 1)).sum(1)
    pairs = counts.sum(1) * (counts.sum(1) - 1)
    return {
        "alpha": Measured(
            "alpha", "Krippendorff's alpha: 1 if all agree, 0 as by chance", alpha, units, unit="alpha"
        ),
        "share": ratio_of(
            equal, pairs.astype(np.int64), units, "equal votes", "of two people's votes on the same pair", "higher",
            "share",
        ),
    }  # fmt: skip
