"""Intervals of figures, paired differences between two models' figures, and what many comparisons cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from tunesmith.evaluation.measured import Measured
from tunesmith.evaluation.metrics import bootstrap, change_with_interval, interval_of, mean_with_interval

LEVEL = 0.05
"""The chance of calling a difference real that is none, over all comparisons together."""

POWER = 0.8
"""The chance of showing a difference of the assumed size (Cohen 1988)."""

MOST_ROWS = 1_000_000
"""More rows than that are not named: nobody has them."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of one model minus that of another on the same rows.

    Attributes:
        value: over all rows.
        interval: 95 %, paired by row.
        p_value: two-sided, of no difference.
        standard_error: of `value`.
        rows: how many both have.
    """

    value: float
    interval: Interval
    p_value: float
    standard_error: float
    rows: int


def estimate(measured: Measured) -> tuple[float, Interval]:
    """A figure over all rows, and its 95 % interval, which contains it.

    Resampling adds noise, which increases a calibration error, so that all of its resamples may lie above the value:
    the interval is then extended.

    Args:
        measured: the figure.

    Returns:
        The value, and (low, high).
    """
    if measured.values is not None:
        return _containing(*mean_with_interval(measured.values))
    value, draws = bootstrap(measured.of, len(measured.units))
    return _containing(value, interval_of(draws))


def paired(reference: Measured, other: Measured) -> Difference | None:
    """The figure of `other` minus that of `reference`, on the rows that both have.

    Args:
        reference: of the model that the other one is compared with.
        other: the same figure of the other model.

    Returns:
        The difference; None if they have no rows in common.
    """
    if list(reference.units) != list(other.units):
        places = {unit: index for index, unit in enumerate(other.units)}
        common = [(index, places[unit]) for index, unit in enumerate(reference.units) if unit in places]
        if not common:
            return None
        rows = np.array(common, np.int64)
        reference, other = reference.on(rows[:, 0]), other.on(rows[:, 1])
    count = len(reference.units)
    _, draws = bootstrap(lambda rows: other.of(rows) - reference.of(rows), count)
    error = float(draws.std(ddof=1))
    if reference.values is not None and other.values is not None:
        value, interval = change_with_interval(reference.values, other.values)
        p_value = _p_value_of_values(other.values - reference.values, value, error)
    else:
        value, interval = other.value - reference.value, interval_of(draws)
        p_value = _p_value(value, error)
    value, interval = _containing(value, interval)
    return Difference(value, interval, p_value, error, count)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are (Holm 1979): rejecting those below 0.05 errs at all in 5 % of cases.

    Args:
        p_values: of all comparisons.

    Returns:
        The adjusted ones, in the same order.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def rows_needed(difference: Difference, level: float = LEVEL, power: float = POWER) -> int | None:
    """How many rows like these would show a difference of the size found.

    n · ((z of level / 2 + z of power) · standard error / difference)², with the standard error at n rows.

    Args:
        difference: as found.
        level: the largest p-value that counts as shown; divided by the comparisons if there are several.
        power: the chance that it is shown with so many rows.

    Returns:
        The rows; None if there is no difference to show, or it takes more than a million.
    """
    if difference.value == 0:
        return None
    z = float(norm.isf(level / 2) + norm.isf(1 - power))
    needed = math.ceil(difference.rows * (z * difference.standard_error / abs(difference.value)) ** 2)
    return needed if needed <= MOST_ROWS else None


def _p_value_of_values(changes: NDArray[np.float64], value: float, error: float) -> float:
    """Of the mean of each row's change: exact for hits (McNemar 1947), else as `_p_value`."""
    if np.isin(changes, (-1.0, 0.0, 1.0)).all():
        changed = int((changes != 0).sum())
        return float(binomtest(int((changes > 0).sum()), changed).pvalue) if changed else 1.0
    return _p_value(value, error)


def _p_value(value: float, error: float) -> float:
    """By the normal distribution, with the bootstrap's standard error."""
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * norm.sf(abs(value) / error))


def _containing(value: float, interval: Interval) -> tuple[float, Interval]:
    low, high = interval
    return value, (min(low, value), max(high, value))
