"""Bootstrap resamples of rows, and what follows from them: BCa intervals, studentized means, p-values."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

RESAMPLES = 2000
"""Of the rows, for each interval."""

Z = float(ndtri(0.975))
"""Half the width of a normal distribution's 95 % interval, in standard deviations."""

BLOCK = 4_000_000
"""Row indices that are drawn at a time, so that many rows need little memory."""

PRIOR_ROWS = 2
"""How many rows' worth of the sample's own variance each resample's variance is drawn toward. Without them, a resample
of mostly equal values (an F1 that is nearly always 0) has no variance, and its distance from the mean no scale."""

SEVERE_BIAS = 1.0
"""Standard errors of bias of the resamples beyond which BCa's correction is no longer reliable, and is left out."""

Interval = tuple[float, float]
"""The two ends of a 95 % interval."""


def bootstrap(figure: Callable[[NDArray[np.int64]], float], rows: int) -> tuple[float, NDArray[np.float64]]:
    """A figure over all rows, and over each bootstrap resample of them.

    The resamples depend only on the number of rows, so that figures of two models on the same rows are paired.

    Args:
        figure: maps row indices to the figure.
        rows: how many rows there are.

    Returns:
        The figure over all rows, and over each resample (resamples,).
    """
    draws = [figure(resample) for block in _resamples(rows) for resample in block]
    return figure(np.arange(rows)), np.array(draws)


def _resamples(rows: int) -> Iterator[NDArray[np.int64]]:
    """Row indices (resamples, rows), some resamples at a time."""
    draw, left = np.random.default_rng(0), RESAMPLES
    while left:
        count = min(left, max(1, BLOCK // rows))
        yield draw.integers(0, rows, (count, rows))
        left -= count


def interval_of(values: NDArray[np.float64]) -> Interval:
    """The middle 95 % of the bootstrap resamples.

    Args:
        values: (resamples,) the figure of each.

    Returns:
        The ends.
    """
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def studentized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each resample's distance from the mean, in its own standard errors.

    Args:
        values: (rows,) not all equal.

    Returns:
        (resamples,).
    """
    rows, centered = len(values), values - values.mean()
    variance = float(np.square(centered).mean())
    draws = []
    for block in _resamples(rows):
        picked = centered[block]
        means = picked.mean(1)
        own = np.square(picked).mean(1) - np.square(means)
        shrunk = (rows * np.maximum(own, 0) + PRIOR_ROWS * variance) / (rows + PRIOR_ROWS)
        draws.append(means / np.sqrt(shrunk / rows))
    return np.concatenate(draws)


def influence_of(figure: Callable[[NDArray[np.int64]], float], value: float, rows: int) -> NDArray[np.float64]:
    """How each row moves a figure: jackknife values.

    Args:
        figure: maps row indices to the figure.
        value: of all rows.
        rows: how many rows there are. More than a thousand are left out some at a time.

    Returns:
        (parts,) the figure's value minus what it is without a part of the rows.
    """
    parts = np.array_split(np.arange(rows), min(rows, 1000))
    if len(parts) < 2:
        return np.zeros(1)
    return value - np.array([figure(np.delete(np.arange(rows), part)) for part in parts])


def _bias_and_acceleration(
    value: float, draws: NDArray[np.float64], influence: NDArray[np.float64]
) -> tuple[float, float] | None:
    """z₀ and a of BCa; None if the resamples are so biased that the correction is not reliable."""
    below = float((draws < value).mean() + (draws == value).mean() / 2)
    bias = float(ndtri(min(max(below, 1 / len(draws)), 1 - 1 / len(draws))))
    centered = influence - influence.mean()
    size = float(np.square(centered).sum()) ** 1.5
    acceleration = float((centered**3).sum()) / (6 * size) if size > 0 and np.isfinite(size) else 0.0
    return (bias, acceleration) if abs(bias) <= SEVERE_BIAS else None


def bias_corrected(value: float, draws: NDArray[np.float64], influence: NDArray[np.float64]) -> Interval:
    """The BCa interval (Efron 1987; Efron & Tibshirani 1993, equations 14.9–14.15).

    Args:
        value: the figure over all rows.
        draws: (resamples,) the figure of each resample.
        influence: (parts,) of `influence_of`.

    Returns:
        The ends; the percentiles of the resamples if these are too biased to be corrected.
    """
    found = _bias_and_acceleration(value, draws, influence)
    if found is None:
        return interval_of(draws)
    bias, acceleration = found
    shifted = bias + np.array([-Z, Z])
    low, high = np.quantile(draws, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)


def p_value_bias_corrected(value: float, draws: NDArray[np.float64], influence: NDArray[np.float64]) -> float:
    """Two-sided, of a figure of 0: the level at which the end of the BCa interval is 0.

    Where fewer than ten resamples are beyond 0 it is that of a normal distribution, but no more than what they show.

    Args:
        value, draws, influence: as in `bias_corrected`.

    Returns:
        The p-value.
    """
    bias, acceleration = _bias_and_acceleration(value, draws, influence) or (0.0, 0.0)
    below = float((draws < 0).mean() + (draws == 0).mean() / 2)
    at = float(ndtri(min(max(below, 1 / len(draws)), 1 - 1 / len(draws)))) - bias
    shown = float(min(1.0, 2 * ndtr(-abs(at / (1 + acceleration * at) - bias))))
    if min(below, 1 - below) * len(draws) >= 10 or not draws.std():
        return shown
    return min(shown, 2 * float(ndtr(-abs(value) / draws.std())))
