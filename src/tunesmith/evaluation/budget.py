"""How many rows an evaluation has time for: as many as it can, since intervals narrow with the root of their number."""

import re
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import UserError
from tunesmith.evaluation.measuring import Trial
from tunesmith.evaluation.rows import Task
from tunesmith.evaluation.suite import Suite, SuiteContext, measure_suite
from tunesmith.inference.sampling import Sampling
from tunesmith.subjects.subject import Subject

PROBE = 8
"""Rows whose answers are timed first; also the fewest that are evaluated."""

SUITE_PROBE = 4
"""Rows of a suite that are timed first."""

MOST = 1_000_000
"""Rows, if nothing limits them."""

UNITS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Cost:
    """What rows cost.

    Attributes:
        seconds: of a model for a row.
        models: how many compute it.
        most: rows beyond these cost nothing: a suite has no more prompts; None: each costs.
    """

    seconds: float
    models: int
    most: int | None = None

    def of(self, rows: int) -> float:
        """Seconds for a number of rows.

        Args:
            rows: of each model.
        """
        return self.seconds * self.models * (rows if self.most is None else min(rows, self.most))


@dataclass(frozen=True, slots=True)
class Budget:
    """What a time allows.

    Attributes:
        seconds: that were given.
        seconds_per_answer: of the first model, measured on a few rows that are answered at the same time; None: nothing
            is answered.
        seconds_per_row: of the first model in each suite.
        rows: to answer, and the most of each suite.
    """

    seconds: float
    seconds_per_answer: float | None
    seconds_per_row: Mapping[str, float]
    rows: int

    def described(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def rows_within(seconds: float, costs: Sequence[Cost]) -> int:
    """The most rows that a time allows.

    Args:
        seconds: for all costs together.
        costs: of answers and suites.

    Returns:
        At least `PROBE`.
    """
    limits = [cost.most for cost in costs if cost.most is not None]
    most = max(limits) if costs and len(limits) == len(costs) else MOST
    fitting = bisect_right(range(1, most + 1), seconds, key=lambda rows: sum(cost.of(rows) for cost in costs))
    return max(PROBE, fitting)


def seconds_of(text: str) -> float:
    """Seconds of a time as people write it.

    Args:
        text: such as `90s`, `10min` or `1.5h`.

    Returns:
        Seconds.

    Raises:
        UserError: it is no time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UserError(f"budget: {text} is not a time. Write 90s, 10min or 1.5h, for example.")
    return float(match[1]) * UNITS[match[2]]


def budget_for(
    trials: Sequence[Trial], suites: Mapping[str, Suite], sampling: Sampling, seconds: float
) -> Budget | None:
    """How many rows can be answered and measured, from how long the first model takes for a few of them.

    What a model takes to load is counted; its loss on all rows is not.

    Args:
        trials: with the models and the rows; suites are measured on the last one.
        suites: by name; not those that are measured later, since they keep what they need of a first model.
        sampling: how answers are written.
        seconds: for all models together.

    Returns:
        The rows, at least `PROBE`; None if nothing is answered or measured.

    Raises:
        UserError: the model cannot be loaded, or a chat cannot be rendered or is too long.
    """
    started = time.perf_counter()
    subject = trials[0].subjects[0].uncached()
    tasks = [] if trials[0].rows is None or not _writes(subject) else trials[0].rows.tasks(PROBE)
    if not tasks and not suites:
        return None
    try:
        loading = _loading(subject)
        answering = _answering(subject, tasks, sampling) if tasks else None
        per_row = {name: _measuring(subject, name, suite, trials[-1], sampling) for name, suite in suites.items()}
    finally:
        subject.close()
    measured = len(trials[-1].subjects)
    answered = sum(len(trial.subjects) for trial in trials if trial.rows is not None)
    costs = [Cost(per_row[name], measured, getattr(suite, "most_rows", None)) for name, suite in suites.items()]
    costs += [] if answering is None else [Cost(answering, answered)]
    left = seconds - (time.perf_counter() - started) - loading * max(answered, measured)
    return Budget(seconds, answering, per_row, rows_within(left, costs))


def _writes(subject: Subject) -> bool:
    return subject.model is None or subject.model.head.generates_text


def _loading(subject: Subject) -> float:
    """Seconds to load a model that writes text, and to compile what a first answer compiles."""
    started = time.perf_counter()
    if _writes(subject):
        subject.timings([[{"role": "user", "content": "Hello."}]], Sampling(1), 1)
    return time.perf_counter() - started


def _answering(subject: Subject, tasks: Sequence[Task], sampling: Sampling) -> float:
    """Seconds of an answer, if a few are written at the same time."""
    started = time.perf_counter()
    subject.timings([task.chat for task in tasks], sampling, len(tasks))
    return (time.perf_counter() - started) / len(tasks)


def _measuring(subject: Subject, name: str, suite: Suite, trial: Trial, sampling: Sampling) -> float:
    """Seconds of a row of a suite. One that needs more rows than a few to measure anything seems to take less."""
    writes = trial.rows is not None and trial.rows.objective.head.generates_text
    tasks = trial.rows.tasks(SUITE_PROBE) if writes and trial.rows is not None else ()
    context = SuiteContext(trial.rows, tasks, sampling, SUITE_PROBE, lambda *_: None, trial.run)
    started = time.perf_counter()
    with suppress(UserError):
        measure_suite(name, suite, subject, context)
    return (time.perf_counter() - started) / SUITE_PROBE
