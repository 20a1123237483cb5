"""95 % intervals of figures, of shares and means of rows, and of their paired differences."""

from collections.abc import Callable
from math import copysign, inf

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from tunesmith.statistics.bootstrap import (
    Interval,
    Z,
    bias_corrected,
    bootstrap,
    influence_of,
    studentized,
)
from tunesmith.statistics.measured import Measured


def estimate(measured: Measured) -> tuple[float, Interval]:
    """A figure and its 95 % interval.

    Its estimator's if it has one. Else Wilson's for the share of rows that are 0 or 1, the bootstrap-t for other means
    (`equal_values` if all rows have the same one), and BCa for what is not a mean.

    Args:
        measured: the figure.

    Returns:
        The value, and the ends of its interval.
    """
    if measured.estimator is not None:
        return measured.estimator.estimate()
    if measured.values is None:
        value, draws = bootstrap(measured.of, len(measured.units))
        ends = bias_corrected(value, draws, influence_of(measured.of, value, len(measured.units)))
        return value, (min(ends[0], value), max(ends[1], value))
    if measured.unit != "share":  # scores of 1 on a scale from 1 to 5 are not hits
        value, ends = _mean_of_scores(measured.values, measured.scale)
    else:
        value, ends = mean_with_interval(measured.values, measured.scale)
    return value, ends if measured.scale is None else _within(ends, *measured.scale)


def mean_with_interval(values: NDArray[np.float64], scale: Interval | None = None) -> tuple[float, Interval]:
    """The mean over rows and its 95 % interval.

    For values that are all 0 or 1 it is Wilson's interval, which stays wide for a few rows without an error. Otherwise
    it is the bootstrap-t (Efron & Tibshirani 1993, equation 12.22), which keeps its promise on few and skewed rows,
    where the percentiles of the resamples are too narrow.

    Args:
        values: (rows,).
        scale: the least and the greatest value that a row can have; None: unknown.

    Returns:
        The mean, and the ends of its interval.
    """
    value = float(values.mean())
    return (value, wilson(value, len(values))) if are_hits(values) else _mean_of_scores(values, scale)


def equal_values(value: float, rows: int, scale: Interval) -> Interval:
    """The 95 % interval of a mean of which all rows have the same value.

    Their resamples do not vary, and would promise that no other value ever comes. If a share q of all rows has other
    values, none of these rows has one with probability (1 − q)^rows, which is below 5 % for q > 1 − 0.05^(1/rows): the
    exact form of the rule of three (Hanley & Lippman-Hand 1983). Rows of that share are at most at an end of the scale.

    Args:
        value: of all rows.
        rows: how many.
        scale: the least and the greatest value that a row can have.

    Returns:
        The ends.
    """
    others = 1 - 0.05 ** (1 / rows)
    return value - others * (value - scale[0]), value + others * (scale[1] - value)


def _mean_of_scores(values: NDArray[np.float64], scale: Interval | None) -> tuple[float, Interval]:
    """The mean by bootstrap-t, or, of equal values on a known scale, by `equal_values`."""
    if scale is None or values.std():
        return _mean_with_bootstrap_t(values)
    value = float(values[0])
    return value, equal_values(value, len(values), scale)


def _mean_with_bootstrap_t(values: NDArray[np.float64]) -> tuple[float, Interval]:
    """The mean, and the ends value − t₀.₉₇₅ error, value − t₀.₀₂₅ error."""
    value = float(values.mean())
    error = float(values.std()) / len(values) ** 0.5
    low, high = np.quantile(studentized(values), [0.025, 0.975]) if error else (0.0, 0.0)
    return value, (min(value, value - float(high) * error), max(value, value - float(low) * error))


def change_with_interval(
    before: NDArray[np.float64], after: NDArray[np.float64], scale: Interval | None = None
) -> tuple[float, Interval]:
    """The mean of after − before over rows and its 95 % interval.

    Swapping the sides flips the sign of both.

    Args:
        before: (rows,) a value of each row.
        after: (rows,) of the same rows.
        scale: the least and the greatest difference that a row can have; None: unknown.

    Returns:
        The mean difference; and Tango's interval for values that are all 0 or 1. For others it is the bootstrap-t, but
        never narrower than Student's: if few rows differ, resamples overrate what these rows say about the skew. If all
        rows differ by the same, it is that of `equal_values`; without a scale, Tango's if none differs: values that did
        not differ are no better known than hits.
    """
    change = after - before
    are_both_hits = are_hits(before) and are_hits(after)
    if scale is not None and not are_both_hits and not change.std():
        return float(change[0]), equal_values(float(change[0]), len(change), scale)
    if are_both_hits or not change.any():
        return float(change.mean()), tango(int((change > 0).sum()), int((change < 0).sum()), len(change))
    value, (low, high) = _mean_with_bootstrap_t(change)
    half = float(stdtrit(len(change) - 1, 0.975) * change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else 0.0
    return value, (min(low, value - half), max(high, value + half))


def wilson(share: float, rows: float) -> Interval:
    """The 95 % score interval of a share (Wilson 1927).

    Args:
        share: of the rows.
        rows: how many; need not be whole.

    Returns:
        The ends.
    """
    squared = Z**2
    middle = (share + squared / (2 * rows)) / (1 + squared / rows)
    half = (squared * (share * (1 - share) / rows + squared / (4 * rows**2))) ** 0.5 / (1 + squared / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def tango(better: int, worse: int, rows: int) -> Interval:
    """The 95 % score interval of a difference of paired shares (Tango 1998, equations 14–17).

    The ends are the differences Δ with (b − c − n Δ)² = z² n (2 q(Δ) + Δ (1 − Δ)), where q is the most likely share of
    rows that get worse, given Δ.

    Args:
        better: b, rows that only the second model gets right.
        worse: c, rows that only the first model gets right.
        rows: n.

    Returns:
        The ends.
    """
    value = (better - worse) / rows

    def distance(change: float) -> float:
        """From the observed difference, in standard errors under `change`."""
        linear = -better - worse + (2 * rows - better + worse) * change
        root = max(0.0, linear**2 + 8 * rows * worse * change * (1 - change)) ** 0.5
        variance = rows * ((root - linear) / (2 * rows) + change * (1 - change))
        gap = better - worse - rows * change
        if variance > 1e-12:
            return float(gap / variance**0.5)
        return copysign(inf, gap) if gap else 0.0

    return _bisect(distance, -1.0, value, Z), _bisect(distance, value, 1.0, -Z)


def _bisect(decreasing: Callable[[float], float], low: float, high: float, target: float) -> float:
    """Where a decreasing function takes the target; the end that is nearer if it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if decreasing(middle) > target else (low, middle)
    return (low + high) / 2


def are_hits(values: NDArray[np.float64]) -> bool:
    """Whether a mean of values is a share of hits.

    Args:
        values: (rows,).

    Returns:
        True if all are 0 or 1.
    """
    return bool(np.isin(values, (0.0, 1.0)).all())


def _within(ends: Interval, low: float, high: float) -> Interval:
    return max(low, ends[0]), min(high, ends[1])
