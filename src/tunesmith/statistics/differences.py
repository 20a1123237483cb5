"""Paired differences of a figure between two models, and Holm's correction for many of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr
from scipy.stats import binomtest

from tunesmith.statistics.bootstrap import (
    Interval,
    bias_corrected,
    bootstrap,
    influence_of,
    p_value_bias_corrected,
    studentized,
)
from tunesmith.statistics.intervals import are_hits, change_with_interval
from tunesmith.statistics.measured import Measured

LEVEL = 0.05
"""The chance of calling a difference real that is none, over all comparisons together."""


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
        return _paired_means(before.values[first], after.values[second], _scale_of_change(before, after))

    def change(picked: NDArray[np.int64]) -> float:
        return after.of(second[picked]) - before.of(first[picked])

    value, draws = bootstrap(change, rows)
    influence = influence_of(change, value, rows)
    low, high = bias_corrected(value, draws, influence)
    p = p_value_bias_corrected(value, draws, influence)
    return Difference(value, (min(low, value), max(high, value)), p, float(draws.std()), rows)


def _common(first: Sequence[str], second: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows,) each: where the units that both have are in the one and in the other."""
    if list(first) == list(second):
        return np.arange(len(first)), np.arange(len(first))
    row_of = {unit: index for index, unit in enumerate(second)}
    pairs = [(index, row_of[unit]) for index, unit in enumerate(first) if unit in row_of]
    ours, theirs = np.array(pairs, np.int64).reshape(-1, 2).T
    return ours, theirs


def _scale_of_change(before: Measured, after: Measured) -> Interval | None:
    """The least and the greatest difference that a row can have; None: unknown."""
    first, second = before.scale, after.scale
    return None if first is None or second is None else (second[0] - first[1], second[1] - first[0])


def _paired_means(before: NDArray[np.float64], after: NDArray[np.float64], scale: Interval | None) -> Difference:
    change = after - before
    value, ends = change_with_interval(before, after, scale)
    if are_hits(before) and are_hits(after):
        better, worse = int((change > 0).sum()), int((change < 0).sum())
        p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
        return Difference(
            value, ends, p, _deviation_of_hits(better, worse, len(change)) / len(change) ** 0.5, len(change)
        )
    deviation = float(change.std(ddof=1)) if len(change) > 1 else 0.0
    return Difference(value, ends, _p_value_of_mean(change, scale), deviation / len(change) ** 0.5, len(change))


def _p_value_of_mean(values: NDArray[np.float64], scale: Interval | None) -> float:
    """Two-sided, of a mean difference of 0: the level at which the end of `change_with_interval` is 0.

    Resamples cannot show a p-value below 1 / resamples. There it is Student's alone.
    """
    error = float(values.std()) / len(values) ** 0.5
    if not error:
        return _p_value_of_equal(float(values[0]), len(values), scale)
    observed, draws = float(values.mean()) / error, studentized(values)
    beyond = min(int((draws >= observed).sum()), int((draws <= observed).sum()))
    student = 2 * float(stdtr(len(values) - 1, -abs(observed) * (1 - 1 / len(values)) ** 0.5))
    return student if beyond < 10 else max(student, min(1.0, 2 * beyond / len(draws)))


def _p_value_of_equal(value: float, rows: int, scale: Interval | None) -> float:
    """Two-sided, of a mean difference of 0 if all rows differ by the same: the level at which the end of `equal_values`
    is 0. Without a scale, that of the sign test."""
    if not value:
        return 1.0
    if scale is None:
        return min(1.0, 2 * 0.5**rows)
    end = scale[0] if value > 0 else scale[1]  # where the rows would be that have another value
    return float((end / (end - value)) ** rows)


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
