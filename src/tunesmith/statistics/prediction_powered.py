"""Rates by a judge who errs, corrected by a few labels of people: prediction-powered inference.

A judge scores many answers, and people label some of them. The judge's mean alone is off by the judge's own bias, of
which its interval knows nothing; the labels' mean alone wastes what the judge saw. Angelopoulos et al. (2023,
"Prediction-powered inference", Science 382) correct the one by the other; Angelopoulos, Duchi & Zrnic (2023, "PPI++",
arXiv 2311.01453) choose how much the judge counts, so that the interval is never wider than that of the labels alone,
but for sampling noise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from tunesmith.statistics.bootstrap import Interval
from tunesmith.statistics.intervals import equal_values, mean_with_interval

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Labeled:
    """The moments of a judge's scores and people's labels on the same rows.

    Attributes:
        rows: how many, with pseudo-rows.
        label, judged: the means.
        label_variance, judged_variance, covariance: of one row.
    """

    rows: float
    label: float
    judged: float
    label_variance: float
    judged_variance: float
    covariance: float

    @classmethod
    def of(cls, judged: Values, labels: Values) -> "Labeled":
        """The moments; of values that are 0 or 1, with half a row added to each of the four cells (Agresti & Min 2005).

        Without these, twenty rows on which judge and people always agree would promise that they always will.
        """
        weights = np.ones(len(labels))
        if _are_hits(judged) and _are_hits(labels):
            judged, labels = np.append(judged, [0.0, 0.0, 1.0, 1.0]), np.append(labels, [0.0, 1.0, 0.0, 1.0])
            weights = np.append(weights, [0.5] * 4)
        total = float(weights.sum())
        x, y = float(weights @ judged) / total, float(weights @ labels) / total
        scale = 1 / (total - 1)
        return cls(
            total,
            y,
            x,
            float(weights @ np.square(labels - y)) * scale,
            float(weights @ np.square(judged - x)) * scale,
            float(weights @ ((labels - y) * (judged - x))) * scale,
        )

    def weight(self, unlabeled: int) -> float:
        """How much the judge counts: λ = Cov(Y, f) / ((1 + n / N) Var(f)), within [0, 1] (PPI++, example 6.1)."""
        if self.judged_variance <= 0:
            return 0.0
        return min(1.0, max(0.0, self.covariance / ((1 + self.rows / unlabeled) * self.judged_variance)))


def prediction_powered(
    judged_labeled: Values, labels: Values, judged_unlabeled: Values, scale: Interval | None = None
) -> tuple[float, Interval]:
    """The mean that people would give to all answers, from a judge's scores and the labels of some.

    θ = mean(Y) + λ (mean(f′) − mean(f)), with variance Var(Y − λ f) / n + λ² Var(f′) / N.

    Args:
        judged_labeled: (n,) the judge's scores f of the labeled rows.
        labels: (n,) the labels Y of the same rows, on the same scale.
        judged_unlabeled: (N,) the judge's scores f′ of other rows, drawn like the labeled ones; may be empty.
        scale: the least and the greatest label; None: unknown. Labels that are all equal leave room for others on it.

    Returns:
        The mean, and the ends of its 95 % interval by Student's t. For labels and scores that are all 0 or 1 it stays
        within [0, 1].

    Raises:
        ValueError: there are fewer than two labels, or scores and labels differ in number.
    """
    if len(labels) != len(judged_labeled) or len(labels) < 2:
        raise ValueError(f"{len(labels)} labels of {len(judged_labeled)} judged rows; two or more of the same rows")
    if not len(judged_unlabeled):
        return mean_with_interval(labels, scale)
    others = len(judged_unlabeled)
    moments = Labeled.of(judged_labeled, labels)
    weight = moments.weight(others)
    unlabeled = float(judged_unlabeled.mean())
    value = float(labels.mean()) + weight * (unlabeled - float(judged_labeled.mean()))
    center = moments.label + weight * (unlabeled - moments.judged)
    residual = moments.label_variance - 2 * weight * moments.covariance + weight**2 * moments.judged_variance
    error = (residual / moments.rows + weight**2 * float(judged_unlabeled.var()) / others) ** 0.5
    half = float(stdtrit(len(labels) - 1, 0.975)) * error
    low, high = min(value, center - half), max(value, center + half)
    if scale is not None and not labels.std() and not _are_hits(labels):
        ends = equal_values(float(labels[0]), len(labels), scale)
        low, high = min(low, ends[0]), max(high, ends[1])
    if _are_hits(labels) and _are_hits(judged_unlabeled):
        value, low, high = (min(1.0, max(0.0, each)) for each in (value, low, high))
    return value, (low, high)


def _are_hits(values: Values) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())
