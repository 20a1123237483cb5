"""From what models computed to figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.head import Head
from tunesmith.config.objective import PER_TOKEN
from tunesmith.data.reasoning import final_answer
from tunesmith.evaluation.rows import Task
from tunesmith.inference.held_out import RowLosses
from tunesmith.metrics import Case, Metric, measured
from tunesmith.metrics.prediction_metrics import PREDICTION_METRICS, Predictions
from tunesmith.statistics.measured import Better, Measured, ratio_of
from tunesmith.subjects.subject import Answer

Figures = dict[str, Measured]
"""One model's figures, by metric."""

DIRECTIONS: dict[int, Better] = {1: "higher", -1: "lower"}

LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Side:
    """One model's results.

    Attributes:
        losses: of each row; None if the model reports none (a server).
        answers: to the tasks; for a head that does not write text, what it predicts, in words.
        predictions: of a head that does not write text.
        units: what the rows are called; needed with `losses` or `predictions`.
        figures: of these results, by name, where they have been computed.
    """

    losses: RowLosses | None
    answers: Sequence[Answer] = ()
    predictions: Predictions | None = None
    units: Sequence[str] = ()
    figures: Mapping[str, Measured] = field(default_factory=dict)

    def with_figures(self, figures: Figures) -> "Side":
        """The same results.

        Args:
            figures: of them, beside those that are there.

        Returns:
            A copy.
        """
        return replace(self, figures={**self.figures, **figures})

    @classmethod
    def pooled(cls, sides: Sequence["Side"]) -> "Side":
        """The results of several models, each on its own rows.

        Args:
            sides: of one fold each.

        Returns:
            All together.
        """
        if len(sides) == 1:
            return sides[0]
        all_losses = [side.losses for side in sides if side.losses is not None]
        losses = RowLosses.joined(all_losses) if all_losses else None
        all_predictions = [side.predictions for side in sides if side.predictions is not None]
        predictions = None
        if all_predictions:
            outputs = [row for part in all_predictions for row in part.outputs]
            targets = [row for part in all_predictions for row in part.targets]
            models = [number for number, part in enumerate(all_predictions) for _ in part.outputs]
            predictions = Predictions(outputs, targets, all_predictions[0].labels, models)
        answers = [answer for side in sides for answer in side.answers]
        return cls(losses, answers, predictions, [unit for side in sides for unit in side.units])


def figures_of(side: Side, tasks: Sequence[Task], head: Head, metrics: Mapping[str, Metric], loss_unit: str) -> Figures:
    """All figures of one model: its loss, and the metrics of its answers or its predictions. Where they have been
    computed they are those, since metrics and resamples take time.

    Args:
        side: what it computed.
        tasks: what the answers are to.
        head: what the model ends in.
        metrics: of written answers; those that fit every expected answer are computed.
        loss_unit: of the loss.

    Returns:
        The figures by name.
    """
    if side.figures:
        return dict(side.figures)
    figures = {} if side.losses is None else loss_figures(side.losses, side.units, head, loss_unit)
    if side.predictions is not None:
        return figures | prediction_figures(side.predictions, side.units, head.metrics)
    return figures | (answer_figures(side.answers, tasks, metrics) if side.answers else {})


COMPARISONS: dict[str, tuple[str, str, Better]] = {
    "accuracy": ("pairs in order", "share of pairs in which the better answer is ahead, ties half", "higher"),
    "margin": ("margin", "how far the better answer is ahead", "higher"),
    "length_bias": (
        "length bias",
        "share of pairs with the longer answer ahead, less that where it is better",
        "neither",
    ),
}
"""What objectives report beside their loss: title, explanation, and which direction is good."""


def loss_figures(losses: RowLosses, units: Sequence[str], head: Head, unit: str) -> Figures:
    """The loss, and what the head reports beside it, such as the perplexity.

    Args:
        losses: of each row.
        units: what the rows are called.
        head: what the model ends in.
        unit: of the loss.

    Returns:
        The figures by name.
    """
    loss = ratio_of(losses.sums, losses.counts, units, LOSS, "how surprised the model is by the rows", "lower", unit)
    others = {
        name: Measured(name, f"the loss as a {name}", _beside(loss, head, name), units, "lower", "", is_compared=False)
        for name in (head.loss_metrics(loss.value) if unit == PER_TOKEN else ())
    }
    for name, sums in losses.others.items():
        title, explanation, better = COMPARISONS.get(name, (name.replace("_", " "), "of the objective", "higher"))
        others[name] = ratio_of(sums, losses.counts, units, title, explanation, better, "")
    return {LOSS: loss, **others}


def _beside(loss: Measured, head: Head, name: str) -> Any:
    return lambda rows: head.loss_metrics(loss.of(rows))[name]


def answer_figures(answers: Sequence[Answer], tasks: Sequence[Task], metrics: Mapping[str, Metric]) -> Figures:
    """The mean score of the answers, by metric. Reasoning before an answer is not scored.

    Args:
        answers: as models wrote them.
        tasks: with the expected answers.
        metrics: by name.

    Returns:
        Those that fit every expected answer.
    """
    return measured(metrics, cases_of(answers, tasks))


def cases_of(answers: Sequence[Answer], tasks: Sequence[Task]) -> list[Case]:
    """What is scored or judged: the answers without the reasoning before them.

    Args:
        answers: as models wrote them.
        tasks: with the expected answers.

    Returns:
        A case for each.
    """
    return [
        Case(task.source, str(task.chat[-1]["content"]), final_answer(answer.text), task.expected, answer.finish_reason)
        for answer, task in zip(answers, tasks, strict=True)
    ]


def prediction_figures(predictions: Predictions, units: Sequence[str], names: Sequence[str]) -> Figures:
    """The metrics of a head that does not write text.

    Args:
        predictions: of all rows.
        units: what the rows are called.
        names: of `PREDICTION_METRICS`.

    Returns:
        The figures by name.
    """
    figures = {}
    for name in names:
        metric = PREDICTION_METRICS[name]
        of = metric.of(predictions)
        hits = np.array([of(np.array([row])) for row in range(len(units))]) if metric.of_hits else None
        unit = "share" if metric.unit == "%" else ""
        figures[name] = Measured(metric.title, metric.explanation, of, units, DIRECTIONS[metric.better], unit, hits)
    return figures


def samples_of(
    tasks: Sequence[Task], answers: Mapping[str, Sequence[Answer]], chosen: Sequence[int]
) -> list[dict[str, Any]]:
    """Some tasks with all models' answers.

    Args:
        tasks: all of them.
        answers: by column name, to all tasks.
        chosen: indices of the tasks.

    Returns:
        `source`, `prompt`, `expected`, and `answers` by column name.
    """
    return [
        {
            "source": tasks[index].source,
            "prompt": str(tasks[index].chat[-1]["content"]),
            "expected": tasks[index].expected,
            "answers": {model: own[index].text for model, own in answers.items() if own},
        }
        for index in chosen
    ]


def token_counts_differ(sides: Sequence[Side]) -> bool:
    """Whether models with different tokenizers read the rows, so that their losses per token cannot be compared.

    Args:
        sides: of the same rows.

    Returns:
        True if a row has other numbers of loss tokens.
    """
    counts: list[NDArray[np.int64]] = [side.losses.counts for side in sides if side.losses is not None]
    return any(not np.array_equal(counts[0], each) for each in counts[1:])
