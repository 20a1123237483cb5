"""Intervals, paired differences, corrections for many comparisons, and how many rows a difference needs.

Rows are taken as independent draws from those that the model will meet. Nothing here knows what a figure means.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, copysign, inf

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import binomtest

from tunesmith.evaluation.measured import Measured

RESAMPLES = 2000

LEVEL = 0.05
"""The chance of calling a difference real that is none, over all comparisons together."""

POWER = 0.8
"""The chance of showing a difference of the assumed size (Cohen 1988)."""

MOST_ROWS = 1_000_000
"""More rows than that are not named: nobody has them."""

Z = float(ndtri(0.975))
"""Of a 95 % interval."""

BLOCK = 4_000_000
"""Row indices that are drawn at a time, so that many rows need little memory."""

PRIOR_ROWS = 2
"""How many rows' worth of the sample's own variance each resample's variance is drawn toward. Without them, a resample
of mostly equal values (an F1 that is nearly always 0) has no variance, and its distance from the mean no scale."""

SEVERE_BIAS = 1.0
"""Standard errors of bias of the resamples beyond which BCa's correction is no longer reliable, and is left out."""

Interval = tuple[float, float]
"""The two ends of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a figure differs between two models on the same rows.

    Attributes:
        value: the second model's figure minus the first one's.
        interval: of the value.
        p_value: two-sided, of no difference.
        standard_error: of the value; for shares, of what a few more rows could show.
        rows: how many rows both have.
    """

    value: float
    interval: Interval
    p_value: float
    standard_error: float
    rows: int

    @property
    def deviation(self) -> float:
        """The standard deviation that one row contributes: the standard error is deviation / √rows."""
        return float(self.standard_error * self.rows**0.5)


def estimate(measured: Measured) -> tuple[float, Interval]:
    """A figure and its 95 % interval.

    Its estimator's if it has one. Else Wilson's for the share of rows that are 0 or 1, the bootstrap-t for other means,
    and BCa for what is not a mean.

    Args:
        measured: the figure.

    Returns:
        The value, and the ends of its interval.
    """
    if measured.estimator is not None:
        return measured.estimator.estimate()
    if measured.values is None:
        value, draws = bootstrap(measured.of, len(measured.units))
        ends = _bias_corrected(value, draws, _influence(measured.of, value, len(measured.units)))
        return value, (min(ends[0], value), max(ends[1], value))
    if measured.unit != "share":  # scores of 1 on a scale from 1 to 5 are not hits
        return _mean_with_bootstrap_t(measured.values)
    value, ends = mean_with_interval(measured.values)
    return value, _within(ends, 0.0, 1.0)


def paired(before: Measured, after: Measured) -> Difference | None:
    """The difference of one figure between two models, on the rows that both have.

    Shares of rows that are 0 or 1 have Tango's score interval (1998) and McNemar's exact p-value; other means the
    bootstrap-t of the rows' differences; what is not a mean BCa, with the same resamples for both. Figures with an
    estimator have its difference.

    Args:
        before: the first model's figure, such as the base's.
        after: the second model's.

    Returns:
        after − before; None if they have no row in common.
    """
    first, second = _common(before.units, after.units)
    rows = len(first)
    if not rows:
        return None
    if before.estimator is not None and after.estimator is not None:
        return after.estimator.on(second).change_from(before.estimator.on(first))
    if before.values is not None and after.values is not None:
        return _paired_means(before.values[first], after.values[second])

    def change(picked: NDArray[np.int64]) -> float:
        return after.of(second[picked]) - before.of(first[picked])

    value, draws = bootstrap(change, rows)
    influence = _influence(change, value, rows)
    low, high = _bias_corrected(value, draws, influence)
    p = _p_value_bias_corrected(value, draws, influence)
    return Difference(value, (min(low, value), max(high, value)), p, float(draws.std()), rows)


def _common(first: Sequence[str], second: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows,) each: where the units that both have are in the one and in the other."""
    if list(first) == list(second):
        return np.arange(len(first)), np.arange(len(first))
    row_of = {unit: index for index, unit in enumerate(second)}
    pairs = [(index, row_of[unit]) for index, unit in enumerate(first) if unit in row_of]
    ours, theirs = np.array(pairs, np.int64).reshape(-1, 2).T
    return ours, theirs


def _paired_means(before: NDArray[np.float64], after: NDArray[np.float64]) -> Difference:
    change = after - before
    value, ends = change_with_interval(before, after)
    if _are_hits(before) and _are_hits(after):
        better, worse = int((change > 0).sum()), int((change < 0).sum())
        p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
        return Difference(
            value, ends, p, _deviation_of_hits(better, worse, len(change)) / len(change) ** 0.5, len(change)
        )
    deviation = float(change.std(ddof=1)) if len(change) > 1 else 0.0
    return Difference(value, ends, _p_value_of_mean(change), deviation / len(change) ** 0.5, len(change))


def _deviation_of_hits(better: int, worse: int, rows: int) -> float:
    """Of one row's difference, with half a row added to each of the four cells (Agresti & Min 2005): rows without any
    difference do not promise that there will never be one."""
    gained, lost = (better + 0.5) / (rows + 2), (worse + 0.5) / (rows + 2)
    return float((gained + lost - (gained - lost) ** 2) ** 0.5)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values for which "below 0.05" holds for all comparisons together (Holm 1979, the step-down Bonferroni test).

    Args:
        p_values: of each comparison.

    Returns:
        In the same order: the largest of (m − k + 1) p₍ₖ₎ over the k-th smallest values up to this one, at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def rows_needed(difference: Difference, level: float = LEVEL, power: float = POWER) -> int | None:
    """How many rows like these would show a difference of the size found.

    Args:
        difference: as found.
        level: the largest p-value that counts as shown; divided by the comparisons if there are several.
        power: the chance that it is shown with so many rows.

    Returns:
        The rows; None if there is no difference to show, or it takes more than a million.
    """
    if difference.value == 0:
        return None
    needed = rows_to_show(difference.value, difference.deviation, level, power)
    return needed if needed <= MOST_ROWS else None


def rows_to_show(size: float, deviation: float, level: float = LEVEL, power: float = POWER) -> int:
    """How many rows show a true difference of a given size.

    n = ((z_{1−α/2} + z_power) · deviation / size)² + z²_{1−α/2} / 2; the last term is for the deviation, which is
    itself estimated (Guenther 1981).

    Args:
        size: of the difference, in the figure's unit; not 0.
        deviation: of one row's difference, as `Difference.deviation`.
        level, power: as in `rows_needed`.

    Returns:
        The rows, at least 2.
    """
    z = float(ndtri(1 - level / 2))
    return max(2, ceil(((z + float(ndtri(power))) * deviation / size) ** 2 + z**2 / 2))


def detectable(rows: int, deviation: float, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true difference that so many rows show; the inverse of `rows_to_show`.

    Args:
        rows: how many rows there are.
        deviation: of one row's difference, as `Difference.deviation`.
        level, power: as in `rows_needed`.

    Returns:
        In the figure's unit; infinite if there are too few rows for any.
    """
    z = float(ndtri(1 - level / 2))
    left = rows - z**2 / 2
    return (z + float(ndtri(power))) * deviation / left**0.5 if left > 0 else inf


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
    """The middle 95 % of the bootstrap resamples."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def mean_with_interval(values: NDArray[np.float64]) -> tuple[float, Interval]:
    """The mean over rows and its 95 % interval.

    For values that are all 0 or 1 it is Wilson's interval, which stays wide for a few rows without an error. Otherwise
    it is the bootstrap-t (Efron & Tibshirani 1993, equation 12.22), which keeps its promise on few and skewed rows,
    where the percentiles of the resamples are too narrow.

    Args:
        values: (rows,).

    Returns:
        The mean, and the ends of its interval.
    """
    value = float(values.mean())
    return (value, wilson(value, len(values))) if _are_hits(values) else _mean_with_bootstrap_t(values)


def _mean_with_bootstrap_t(values: NDArray[np.float64]) -> tuple[float, Interval]:
    """The mean, and the ends value − t₀.₉₇₅ error, value − t₀.₀₂₅ error."""
    value = float(values.mean())
    error = float(values.std()) / len(values) ** 0.5
    low, high = np.quantile(_studentized(values), [0.025, 0.975]) if error else (0.0, 0.0)
    return value, (min(value, value - float(high) * error), max(value, value - float(low) * error))


def _studentized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(resamples,) each resample's distance from the mean, in its own standard errors. `values` are not all equal."""
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


def _p_value_of_mean(values: NDArray[np.float64]) -> float:
    """Two-sided, of a mean difference of 0: the level at which the end of `change_with_interval` is 0.

    Resamples cannot show a p-value below 1 / resamples. There it is Student's alone.
    """
    error = float(values.std()) / len(values) ** 0.5
    if not error:
        return 0.0 if values.any() and len(values) > 1 else 1.0
    observed, draws = float(values.mean()) / error, _studentized(values)
    beyond = min(int((draws >= observed).sum()), int((draws <= observed).sum()))
    student = 2 * float(stdtr(len(values) - 1, -abs(observed) * (1 - 1 / len(values)) ** 0.5))
    return student if beyond < 10 else max(student, min(1.0, 2 * beyond / len(draws)))


def change_with_interval(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, Interval]:
    """The mean of after − before over rows and its 95 % interval.

    Swapping the sides flips the sign of both.

    Args:
        before: (rows,) a value of each row.
        after: (rows,) of the same rows.

    Returns:
        The mean difference; and Tango's interval for values that are all 0 or 1. For others it is the bootstrap-t, but
        never narrower than Student's: if few rows differ, resamples overrate what these rows say about the skew. If no
        row differs, it is Tango's: values that did not differ are no better known than hits.
    """
    change = after - before
    if (_are_hits(before) and _are_hits(after)) or not change.any():
        return float(change.mean()), tango(int((change > 0).sum()), int((change < 0).sum()), len(change))
    value, (low, high) = _mean_with_bootstrap_t(change)
    half = float(stdtrit(len(change) - 1, 0.975) * change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else 0.0
    return value, (min(low, value - half), max(high, value + half))


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


def wilson(share: float, rows: float) -> Interval:
    """The 95 % score interval of a share of `rows` rows (Wilson 1927)."""
    squared = Z**2
    middle = (share + squared / (2 * rows)) / (1 + squared / rows)
    half = (squared * (share * (1 - share) / rows + squared / (4 * rows**2))) ** 0.5 / (1 + squared / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def _influence(figure: Callable[[NDArray[np.int64]], float], value: float, rows: int) -> NDArray[np.float64]:
    """How each row moves a figure: (rows,) jackknife values. Many rows are left out some at a time."""
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


def _bias_corrected(value: float, draws: NDArray[np.float64], influence: NDArray[np.float64]) -> Interval:
    """The BCa interval (Efron 1987; Efron & Tibshirani 1993, equations 14.9–14.15)."""
    found = _bias_and_acceleration(value, draws, influence)
    if found is None:
        return interval_of(draws)
    bias, acceleration = found
    shifted = bias + np.array([-Z, Z])
    low, high = np.quantile(draws, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)


def _p_value_bias_corrected(value: float, draws: NDArray[np.float64], influence: NDArray[np.float64]) -> float:
    """Two-sided, of a figure of 0: the level at which the end of the BCa interval is 0.

    Where fewer than ten resamples are beyond 0 it is that of a normal distribution, but no more than what they show.
    """
    bias, acceleration = _bias_and_acceleration(value, draws, influence) or (0.0, 0.0)
    below = float((draws < 0).mean() + (draws == 0).mean() / 2)
    at = float(ndtri(min(max(below, 1 / len(draws)), 1 - 1 / len(draws)))) - bias
    shown = float(min(1.0, 2 * ndtr(-abs(at / (1 + acceleration * at) - bias))))
    if min(below, 1 - below) * len(draws) >= 10 or not draws.std():
        return shown
    return min(shown, 2 * float(ndtr(-abs(value) / draws.std())))


def _are_hits(values: NDArray[np.float64]) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _within(ends: Interval, low: float, high: float) -> Interval:
    return max(low, ends[0]), min(high, ends[1])
