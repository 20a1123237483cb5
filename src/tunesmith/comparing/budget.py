"""What a comparison has time for: fewer rows first, then fewer ways, the most elaborate ones first."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tunesmith.comparing.experiment import Experiment
from tunesmith.comparing.measured_way import TIMED
from tunesmith.comparing.rows import write_rows
from tunesmith.comparing.tuned import recipe_for
from tunesmith.comparing.ways import Way
from tunesmith.evaluation.budget import rows_within, seconds_of
from tunesmith.evaluation.rows import spread
from tunesmith.planner.request import plan

PROBE = 6
"""Rows whose answers are timed."""

FEWEST_ROWS = 50
"""Rows that are kept as long as ways can be left out instead."""

LONGER = {"few_shot": 1.5, "retrieval": 2.0, "tuned_retrieval": 2.0, "retrieval_tuned": 2.0}
"""How much longer an answer takes whose prompt has examples or excerpts; estimates."""

FIRST_TO_GO = ("retrieval_tuned", "tuned_retrieval", "tuned_prompt", "prompt", "few_shot", "retrieval", "tuned")
"""In which order ways are left out; the plain base stays."""


@dataclass(frozen=True)
class Allowed:
    """What a budget allows.

    Attributes:
        left_out: ways that it does not allow, and why.
        seconds: of the budget; None if there is none.
        predicted: seconds by part of what is left; empty without a budget.
    """

    left_out: dict[str, str]
    seconds: float | None = None
    predicted: dict[str, float] | None = None

    def described(self) -> dict[str, Any] | None:
        """Plain values; None if there is no budget."""
        if self.seconds is None:
            return None
        return {"seconds": self.seconds, "predicted": self.predicted}


def within_budget(experiment: Experiment, ways: Sequence[Way]) -> Allowed:
    """Fit a comparison into its budget.

    Answers are predicted from the time of a few of the base's; runs by the planner.

    Args:
        experiment: whose held-out rows are reduced to those that fit.
        ways: that can run.

    Returns:
        Which ways do not fit. The plain base on `FEWEST_ROWS` rows is never left out.

    Raises:
        UserError: the budget is no time, or the base cannot be loaded.
    """
    budget = experiment.comparison.budget
    if budget is None:
        return Allowed({})
    seconds, each = seconds_of(budget), _seconds_of_an_answer(experiment)
    training = _training_seconds(experiment) if any(way.model == "tuned" for way in ways) else 0.0
    rows, left = len(experiment.parts.held_out), list(ways)
    left_out: dict[str, str] = {}
    while True:
        count = rows_within(seconds, partial(_total, left, each, training, experiment), rows)
        if count >= min(rows, FEWEST_ROWS) or len(left) == 1:
            break
        way = next(way for name in FIRST_TO_GO for way in left if way.name == name)
        left.remove(way)
        left_out[way.name] = f"the budget of {budget} does not allow it"
    count = max(count, min(rows, FEWEST_ROWS))
    held_out = [experiment.parts.held_out[row] for row in spread(rows, count)]
    experiment.parts = replace(experiment.parts, held_out=held_out, unused=experiment.parts.unused + rows - count)
    return Allowed(left_out, seconds, _predicted(left, each, training, experiment, count))


def _predicted(
    ways: Sequence[Way], each: float, training: float, experiment: Experiment, rows: int
) -> dict[str, float]:
    """Seconds by part."""
    development, spec = len(experiment.parts.development), experiment.comparison
    prompts = any(way.prompt for way in ways) * len(spec.prompts)
    shots = any(way.shots for way in ways) * len(spec.shots) * LONGER["few_shot"]
    given = {"tuned": spec.tuned, "retrieval_tuned": spec.retrieval_tuned}
    runs = len({way.model for way in ways if way.model in given and given[way.model] is None})
    return {
        "choices": development * each * (prompts + shots),
        "training": training * runs,
        "answers": sum((rows + 2 * TIMED) * each * LONGER.get(way.name, 1.0) for way in ways),
    }


def _total(ways: Sequence[Way], each: float, training: float, experiment: Experiment, rows: int) -> float:
    """Seconds of a comparison on so many held-out rows."""
    return sum(_predicted(ways, each, training, experiment, rows).values())


def _seconds_of_an_answer(experiment: Experiment) -> float:
    """Of the base, if several are written at the same time."""
    tasks = experiment.parts.tasks
    chats = [tasks[row].chat for row in spread(len(tasks), PROBE)]
    experiment.base.timings(chats[:1], experiment.sampling, 1)
    started = time.perf_counter()
    experiment.base.timings(chats, experiment.sampling, len(chats))
    return (time.perf_counter() - started) / len(chats)


def _training_seconds(experiment: Experiment) -> float:
    """Of a run on the training rows, as planned."""
    rows = experiment.output / "rows"
    rows.mkdir(exist_ok=True)
    train = write_rows(rows / "tuned.jsonl", experiment.parts.train)
    time_of = plan(recipe=recipe_for(experiment.comparison, train, None)).time
    return 0.0 if time_of is None else time_of.total_seconds or 0.0
