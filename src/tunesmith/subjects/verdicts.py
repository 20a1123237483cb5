"""What a judge said about answers, as figures: its verdicts, how far it agrees with itself and with people, and what
people's labels of some answers make of its verdicts on all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.statistics.bootstrap import Interval
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.statistics.prediction_powered import prediction_powered

LOWEST, HIGHEST = 1, 5
"""The scale of single scores."""

SCORES: Interval = (LOWEST, HIGHEST)
WIN_OR_LOSS: Interval = (0.0, 1.0)
"""Of a verdict on a pair."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a judge said about the cases.

    Attributes:
        values: (cases,) the score, or 1 if the second answer is better, 0 if the first, 0.5 if neither or if the order
            decided; NaN where the judge's reply could not be read.
        first: (cases,) as judged the first time; of pairs, in the given order.
        again: (cases,) as judged the second time; of pairs, in the other order.
        sources: of the cases.
    """

    values: NDArray[np.float64]
    first: NDArray[np.float64]
    again: NDArray[np.float64]
    sources: tuple[str, ...]

    @property
    def judged(self) -> NDArray[np.int64]:
        """(judged,) the cases with a value."""
        return np.flatnonzero(~np.isnan(self.values))

    @property
    def replies(self) -> int:
        """How often the judge was asked."""
        return 2 * len(self.values)

    @property
    def failures(self) -> int:
        """Replies that could not be read."""
        return int(np.isnan(self.first).sum() + np.isnan(self.again).sum())

    @property
    def twice(self) -> NDArray[np.int64]:
        """(twice,) the cases of which both replies could be read."""
        return np.flatnonzero(~np.isnan(self.first) & ~np.isnan(self.again))


def score_figure(verdicts: Verdicts, judge: str) -> Measured:
    """The mean score.

    Args:
        verdicts: of `Judge.scores`, with a value of one case or more.
        judge: the judge's name.

    Returns:
        The figure, over the cases with a value.
    """
    return _mean(
        verdicts, f"score by {judge}", f"mean of the judge's scores from {LOWEST} to {HIGHEST}", "points", SCORES
    )


def wins_figure(verdicts: Verdicts, judge: str) -> Measured:
    """How often the judge prefers the second model.

    Args:
        verdicts: of `Judge.pairs`, with a value of one case or more.
        judge: the judge's name.

    Returns:
        The share, ties counting half, over the cases with a value.
    """
    return _mean(
        verdicts,
        f"preferred by {judge}",
        "answers preferred to the first model's, ties counting half",
        "share",
        WIN_OR_LOSS,
    )


def agreement_with_itself(verdicts: Verdicts) -> tuple[Measured, float]:
    """How often the judge says the same the second time: to the same answer, or after the two changed places.

    Args:
        verdicts: with a case or more of which both replies could be read.

    Returns:
        The share of these cases, and the share by chance: of two judges who give each verdict as often as this one gave
        it the first time and the second time, whatever the answer (Cohen 1960).
    """
    both = verdicts.twice
    first, again = verdicts.first[both], verdicts.again[both]
    units = [verdicts.sources[row] for row in both.tolist()]
    chance = sum(float((first == kind).mean() * (again == kind).mean()) for kind in np.unique(first))
    equal = (first == again).astype(np.float64)
    return mean_of(equal, units, "judge agrees with itself", "the same verdict the second time"), chance


def agreement_with_people(verdicts: Verdicts, labels: NDArray[np.float64]) -> dict[str, Measured]:
    """How far the judge agrees with people's labels of the same cases.

    Args:
        verdicts: the judge's.
        labels: (cases,) on the judge's scale; NaN: no label.

    Returns:
        `agreement`: the share of equal values; `kappa`: Cohen's with quadratic weights (Cohen 1968), 0 by chance and 1
        if always equal.

    Raises:
        ValueError: no case has both.
    """
    from sklearn.metrics import cohen_kappa_score

    both = np.flatnonzero(~np.isnan(verdicts.values) & ~np.isnan(labels))
    if not len(both):
        raise ValueError("no case has both a verdict and a label")
    ours, theirs = verdicts.values[both], labels[both]
    units = [verdicts.sources[row] for row in both.tolist()]
    kinds = np.unique(np.concatenate([ours, theirs]))
    a, b = np.searchsorted(kinds, ours), np.searchsorted(kinds, theirs)

    def kappa(rows: NDArray[np.int64]) -> float:
        if (a[rows] == b[rows]).all():
            return 1.0
        return float(cohen_kappa_score(a[rows], b[rows], labels=np.arange(len(kinds)), weights="quadratic"))

    equal = (ours == theirs).astype(np.float64)
    return {
        "agreement": mean_of(equal, units, "judge agrees with people", "cases with the same value"),
        "kappa": Measured(
            "kappa", "agreement of judge and people beyond chance, by quadratic weights", kappa, units, unit="kappa"
        ),
    }


def corrected_by_people(verdicts: Verdicts, labels: NDArray[np.float64], scale: Interval) -> tuple[float, Interval]:
    """The mean that people would give to all cases, from the judge's values and the labels of some.

    Args:
        verdicts: the judge's.
        labels: (cases,) on the judge's scale; NaN: no label. Which cases have one must not depend on their quality.
        scale: the judge's, `SCORES` or `WIN_OR_LOSS`.

    Returns:
        The mean, and the ends of its 95 % interval, within the scale.

    Raises:
        ValueError: fewer than two cases have both a verdict and a label.
    """
    judged = ~np.isnan(verdicts.values)
    labeled = judged & ~np.isnan(labels)
    return prediction_powered(verdicts.values[labeled], labels[labeled], verdicts.values[judged & ~labeled], scale)


def _mean(verdicts: Verdicts, title: str, about: str, unit: str, scale: Interval) -> Measured:
    """The mean over the cases whose verdict could be read, which the explanation counts."""
    units = [verdicts.sources[row] for row in verdicts.judged.tolist()]
    read = f"{about}; {verdicts.failures:,} of {verdicts.replies:,} replies could not be read"
    return mean_of(verdicts.values[verdicts.judged], units, title, read, unit=unit, bounds=scale)
