"""What a metric or a suite finds out about one model, in the form from which intervals and differences are computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tunesmith.statistics.bootstrap import Interval
    from tunesmith.statistics.differences import Difference

Better = Literal["higher", "lower", "neither"]
"""Which direction of a figure is good; neither: it only describes."""


class Estimator(Protocol):
    """A figure's own interval, where a better one is known than that of a bootstrap."""

    def estimate(self) -> "tuple[float, Interval]":
        """The figure, and the ends of its 95 % interval."""

    def on(self, rows: NDArray[np.int64]) -> "Estimator":
        """The same on some of the rows.

        Args:
            rows: (some,) indices.
        """

    def change_from(self, before: Any) -> "Difference":
        """The difference from another model's figure.

        Args:
            before: of the same kind and on the same rows, in the same order.
        """


@dataclass(frozen=True)
class Measured:
    """One figure of one model on rows, of which an interval is a bootstrap unless it has an estimator.

    Attributes:
        title: its name in tables.
        explanation: for readers who do not know it.
        of: maps row indices (with repetitions, as a resample has them) to the figure.
        units: what the rows are called, in order, each name once. Figures of two models are paired by these names.
        better: which direction is good.
        unit: `share`, `nats`, `seconds`, `points`, or what else the figure counts; empty if it counts nothing.
        values: (rows,) float64 of which the figure is the mean; None if it is not a mean. Values that are all 0 or 1
            get Wilson's interval.
        is_compared: whether models are compared by it. Not if another figure says the same, as the loss does of the
            perplexity.
        estimator: of the figure and its interval; None: a bootstrap.
        bounds: the least and the greatest value that a row can have, so that equal values have an interval too; None: 0
            and 1 of a share, else unknown.
    """

    title: str
    explanation: str
    of: Callable[[NDArray[np.int64]], float]
    units: Sequence[str]
    better: Better = "higher"
    unit: str = "share"
    values: NDArray[np.float64] | None = None
    is_compared: bool = True
    estimator: Estimator | None = None
    bounds: tuple[float, float] | None = None

    @property
    def scale(self) -> tuple[float, float] | None:
        """The least and the greatest value of a row; None: unknown."""
        return (0.0, 1.0) if self.bounds is None and self.unit == "share" else self.bounds

    def on(self, rows: NDArray[np.int64]) -> "Measured":
        """The same figure of some of the rows.

        Args:
            rows: (some,) indices, each once.
        """
        return replace(
            self,
            of=lambda some: self.of(rows[some]),
            units=[self.units[row] for row in rows],
            values=None if self.values is None else self.values[rows],
            estimator=None if self.estimator is None else self.estimator.on(rows),
        )

    @property
    def value(self) -> float:
        """The figure over all rows."""
        return self.of(np.arange(len(self.units)))

    @cached_property
    def estimate(self) -> "tuple[float, Interval]":
        """The figure over all rows and its 95 % interval (`intervals.estimate`). Its resamples are drawn once."""
        from tunesmith.statistics.intervals import estimate  # which is about figures, and loads SciPy

        return estimate(self)


def mean_of(
    values: Sequence[float] | NDArray[np.float64],
    units: Sequence[str],
    title: str,
    explanation: str,
    better: Better = "higher",
    unit: str = "share",
    bounds: tuple[float, float] | None = None,
) -> Measured:
    """A figure that is the mean of a value of each row.

    Args:
        values: (rows,).
        units: what the rows are called.
        title, explanation, better, unit, bounds: as in `Measured`.

    Returns:
        The figure.
    """
    array = np.asarray(values, np.float64)

    def mean(rows: NDArray[np.int64]) -> float:
        return float(array[rows].mean())

    return Measured(title, explanation, mean, units, better, unit, array, bounds=bounds)


def ratio_of(
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    units: Sequence[str],
    title: str,
    explanation: str,
    better: Better = "lower",
    unit: str = "nats",
) -> Measured:
    """A figure that is a sum over rows divided by a count over rows, such as the loss of a token.

    Args:
        sums: (rows,).
        counts: (rows,).
        units: what the rows are called.
        title, explanation, better, unit: as in `Measured`.

    Returns:
        The figure.
    """
    return Measured(title, explanation, lambda rows: float(sums[rows].sum() / counts[rows].sum()), units, better, unit)
