"""The area under the ROC curve, how well a score separates two groups, with DeLong's interval."""

from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata

from tunesmith.evaluation.statistics import Interval, Z, wilson


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float, Interval]:
    """The probability that a positive row scores above a negative one, ties counting half (Hanley & McNeil 1982).

    The variance is DeLong's (DeLong et al. 1988, by the mid-ranks of Sun & Xu 2014), on the scale of the log
    odds, which keeps the interval within (0, 1) and its promise near the ends (Pepe 2003, chapter 5). An area of 0 or 1
    has no variance; its interval is Wilson's for as many rows as the smaller group has.

    Args:
        scores: (rows,) any numbers.
        positive: (rows,) which rows should score high.

    Returns:
        The area, and the ends of its 95 % interval.

    Raises:
        ValueError: one of the groups is empty.
    """
    above, below = scores[positive], scores[~positive]
    if not len(above) or not len(below):
        raise ValueError("an area under the curve needs rows of both groups")
    together = rankdata(np.concatenate([above, below]))
    # each row's share of the other group that it is on the right side of
    placed_above = (together[: len(above)] - rankdata(above)) / len(below)
    placed_below = 1 - (together[len(above) :] - rankdata(below)) / len(above)
    value = float(placed_above.mean())
    if value in (0.0, 1.0) or min(len(above), len(below)) < 2:
        return value, wilson(value, min(len(above), len(below)))
    variance = float(placed_above.var(ddof=1)) / len(above) + float(placed_below.var(ddof=1)) / len(below)
    middle, half = log(value / (1 - value)), Z * variance**0.5 / (value * (1 - value))
    return value, (float(expit(middle - half)), float(expit(middle + half)))
