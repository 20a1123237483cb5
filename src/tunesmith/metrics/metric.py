"""What a metric is: a score of one answer, or a figure of all answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.extensions import failures_named
from tunesmith.errors import UserError
from tunesmith.statistics.measured import Better, Measured, mean_of

Score = Callable[[str, str], float]
"""(answer, expected) → [0, 1]."""


@dataclass(frozen=True, slots=True)
class Case:
    """An answer to one row, and what is known about the row.

    Attributes:
        source: what the row is called; cases of two models are paired by it.
        prompt: the last turn of the user.
        answer: what the model answered.
        expected: the row's own answer.
        finish_reason: `stop` or `length`; None if it is not known.
    """

    source: str
    prompt: str
    answer: str
    expected: str
    finish_reason: str | None = None


def any_text(text: str) -> bool:
    """A metric that fits every expected answer."""
    return True


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of an answer, or a figure of all answers.

    Attributes:
        title: its name in tables.
        explanation: for readers who do not know it.
        score: maps an answer and the expected answer to [0, 1]. None: it needs more than these two, and has `figure`.
        fits: whether the metric can score answers to an expected answer. It is left out unless it fits all of them.
        better: which direction is good.
        unit: as in `Measured`.
        figure: maps the metric and the cases to its figure. None: the figure is the mean of the scores.
    """

    title: str
    explanation: str
    score: Score | None
    fits: Callable[[str], bool] = any_text
    better: Better = "higher"
    unit: str = "share"
    figure: "Callable[[Metric, Sequence[Case]], Measured] | None" = None

    def mean(self, values: Sequence[float] | NDArray[np.float64], cases: Sequence[Case]) -> Measured:
        """The figure that is the mean of a value of each case.

        Args:
            values: (cases,).
            cases: the answers that were scored.

        Returns:
            The figure, under this metric's title.
        """
        units = [case.source for case in cases]
        return mean_of(values, units, self.title, self.explanation, self.better, self.unit)


def fitting(metrics: Mapping[str, Metric], expected: Sequence[str]) -> dict[str, Metric]:
    """The metrics that fit every expected answer.

    Args:
        metrics: by name.
        expected: the expected answers.

    Returns:
        By name; none if there are no expected answers.
    """
    return {name: metric for name, metric in metrics.items() if expected and all(map(metric.fits, expected))}


def measured(metrics: Mapping[str, Metric], cases: Sequence[Case]) -> dict[str, Measured]:
    """One model's figures by the metrics that fit.

    Args:
        metrics: by name.
        cases: its answers.

    Returns:
        By name, without the metrics that do not fit every expected answer.

    Raises:
        UserError: a metric of a user's fails.
    """
    expected, answers = [case.expected for case in cases], [case.answer for case in cases]
    return {
        name: metric.mean(scores(metric, answers, expected), cases)
        if metric.figure is None
        else metric.figure(metric, cases)
        for name, metric in fitting(metrics, expected).items()
    }


def scores(metric: Metric, answers: Sequence[str], expected: Sequence[str]) -> NDArray[np.float64]:
    """The metric's score of each row (rows,).

    Raises:
        UserError: a metric of a user's fails, or it needs more than the answers.
    """
    if metric.score is None:
        raise UserError(f"{metric.title} has no score of a single answer. Use the figure of all of them.")
    module = getattr(metric.score, "__module__", None) or ""
    own = module.partition(".")[0] == "tunesmith"
    with failures_named({} if own else {f"The metric {metric.title}": module}):
        return np.array([metric.score(answer, target) for answer, target in zip(answers, expected, strict=True)])


def without_repeats(
    figures: Mapping[str, Mapping[str, Measured]], beside: Mapping[str, str]
) -> dict[str, dict[str, Measured]]:
    """The models' figures without those that repeat another one for every model.

    Args:
        figures: by model and metric.
        beside: a metric → the one that it is shown beside only where they differ, as `exact_match_strict` and
            `exact_match`.

    Returns:
        By model and metric.
    """

    def repeats(name: str) -> bool:
        other = beside.get(name, "")
        pairs = [(by_metric.get(name), by_metric.get(other)) for by_metric in figures.values()]
        return all(a is not None and b is not None and np.array_equal(_values(a), _values(b)) for a, b in pairs)

    return {
        model: {name: figure for name, figure in by_metric.items() if not repeats(name)}
        for model, by_metric in figures.items()
    }


def _values(figure: Measured) -> NDArray[np.float64]:
    """(rows,) of a mean; the figure itself (1,) otherwise."""
    return figure.values if figure.values is not None else np.array([figure.of(np.arange(len(figure.units)))])
