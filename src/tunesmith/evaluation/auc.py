"""The area under the ROC curve, how well a score separates two groups, with DeLong's intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, stdtr, stdtrit
from scipy.stats import rankdata

from tunesmith.statistics.bootstrap import Interval, Z
from tunesmith.statistics.differences import Difference
from tunesmith.statistics.intervals import tango, wilson
from tunesmith.statistics.measured import Better, Measured


@dataclass(frozen=True, slots=True)
class Area:
    """The probability that a positive row scores above a negative one, ties counting half (Hanley & McNeil 1982).

    Attributes:
        scores: (rows,) any numbers.
        positive: (rows,) which rows should score high.
    """

    scores: NDArray[np.float64]
    positive: NDArray[np.bool_]

    def __call__(self, rows: NDArray[np.int64]) -> float:
        """The area on some of the rows.

        Args:
            rows: (some,) indices, which may repeat.

        Returns:
            The area; 0.5 without rows of both groups.
        """
        part = self.on(rows)
        return float(part._placements()[0].mean()) if part._fewest else 0.5

    def on(self, rows: NDArray[np.int64]) -> "Area":
        """As `Estimator.on`.

        Args:
            rows: (some,) indices.

        Returns:
            The area of these rows.
        """
        return Area(self.scores[rows], self.positive[rows])

    def estimate(self) -> tuple[float, Interval]:
        """The area and its 95 % interval.

        The variance is DeLong's (DeLong et al. 1988, by the mid-ranks of Sun & Xu 2014), on the scale of the log
        odds, which keeps the interval within (0, 1) and its promise near the ends (Pepe 2003, chapter 5). An area of 0
        or 1 has no variance; its interval is Wilson's for as many rows as the smaller group has.

        Returns:
            The area, and the ends of its interval; 0.5, and 0 to 1, without rows of both groups.
        """
        if not self._fewest:
            return 0.5, (0.0, 1.0)
        places = self._placements()
        value = float(places[0].mean())
        if value in (0.0, 1.0) or self._fewest < 2:
            return value, wilson(value, self._fewest)
        middle, half = log(value / (1 - value)), Z * sum(_variances(*places)) ** 0.5 / (value * (1 - value))
        return value, (float(expit(middle - half)), float(expit(middle + half)))

    def change_from(self, before: "Area") -> Difference:
        """The difference of two models' areas on the same rows (DeLong et al. 1988, equation 5).

        Few rows make the variance uncertain, so the distribution is Student's, with the degrees of freedom of two
        groups with variances of their own (Satterthwaite 1946).

        Args:
            before: the first model's.

        Returns:
            The difference. If no row's part in the areas changed differently from the others', it is known as well as
            a change of as many hits as the smaller group has rows.
        """
        rows, fewest = len(self.scores), self._fewest
        if fewest < 2:
            value = self.estimate()[0] - before.estimate()[0]
            return Difference(value, (-1.0, 1.0), 1.0, 1.0, rows)
        changes = [after - first for after, first in zip(self._placements(), before._placements(), strict=True)]
        value, (above, below) = float(changes[0].mean()), _variances(*changes)
        error = (above + below) ** 0.5
        if not error:
            ends = tango(fewest * (value > 0), fewest * (value < 0), fewest)
            return Difference(value, ends, 0.0 if value else 1.0, 0.0, rows)
        sizes = [len(each) - 1 for each in changes]
        freedom = (above + below) ** 2 / (above**2 / sizes[0] + below**2 / sizes[1])
        half = float(stdtrit(freedom, 0.975)) * error
        p_value = 2 * float(stdtr(freedom, -abs(value) / error))
        return Difference(value, (max(-1.0, value - half), min(1.0, value + half)), p_value, error, rows)

    @property
    def _fewest(self) -> int:
        """Rows of the smaller group."""
        return int(min(self.positive.sum(), (~self.positive).sum()))

    def _placements(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each row's share of the other group that it is on the right side of: of positive rows, of negative ones."""
        above, below = self.scores[self.positive], self.scores[~self.positive]
        together = rankdata(np.concatenate([above, below]))
        of_above = (together[: len(above)] - rankdata(above)) / len(below)
        return of_above, 1 - (together[len(above) :] - rankdata(below)) / len(above)


def _variances(above: NDArray[np.float64], below: NDArray[np.float64]) -> tuple[float, float]:
    """Of the mean over the rows of each group, from their parts in an area or in a difference of two."""
    return float(above.var(ddof=1)) / len(above), float(below.var(ddof=1)) / len(below)


def area_of(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    units: Sequence[str],
    title: str,
    explanation: str,
    better: Better = "higher",
) -> Measured:
    """A figure that is the area under the ROC curve, with DeLong's intervals.

    Args:
        scores: (rows,) any numbers.
        positive: (rows,) which rows should score high.
        units: what the rows are called.
        title, explanation, better: as in `Measured`.

    Returns:
        The figure.
    """
    area = Area(scores, positive)
    return Measured(title, explanation, area, units, better, "", estimator=area)
