"""How many rows an evaluation has time for: as many as it can, since intervals narrow with the root of their number."""

import re
import time
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import UserError
from tunesmith.evaluation.measuring import Trial
from tunesmith.inference.sampling import Sampling

PROBE = 8
"""Rows whose answers are timed first; also the fewest that are evaluated."""

UNITS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Budget:
    """What a time allows.

    Attributes:
        seconds: that were given.
        seconds_per_answer: of the first model, measured on a few rows that are answered at the same time.
        rows: to answer.
    """

    seconds: float
    seconds_per_answer: float
    rows: int

    @classmethod
    def of(cls, seconds: float, loading: float, answering: float, answered: int, models: int) -> "Budget":
        """What is left after a first model was timed.

        Args:
            seconds: for all models together.
            loading: seconds that the first model took to load; every model is loaded once more.
            answering: seconds that it took for a few rows.
            answered: how many rows that were.
            models: how many have to answer the same number of rows.

        Returns:
            The budget, with at least `PROBE` rows.
        """
        each = answering / answered
        left = seconds - loading - answering - models * loading
        return cls(seconds, each, max(PROBE, int(left / models / each)))

    def described(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


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


def budget_for(trial: Trial, sampling: Sampling, seconds: float, models: int) -> Budget | None:
    """How many rows can be answered, from how long the first model takes for a few of them.

    Args:
        trial: with the models and the rows.
        sampling: how answers are written.
        seconds: for all models together.
        models: how many have to answer the same number of rows.

    Returns:
        The rows, at least `PROBE`; None if nothing is answered.

    Raises:
        UserError: the model cannot be loaded, or a chat cannot be rendered or is too long.
    """
    tasks = [] if trial.rows is None or not trial.rows.objective.head.generates_text else trial.rows.tasks(PROBE)
    if not tasks:
        return None
    started = time.perf_counter()
    subject, chats = trial.subjects[0], [task.chat for task in tasks]
    try:
        subject.timings(chats[:1], sampling, 1)  # loads the model
        answering = time.perf_counter()
        subject.timings(chats, sampling, len(chats))
    finally:
        subject.close()
    loading, spent = answering - started, time.perf_counter() - answering
    return Budget.of(seconds, loading, spent, len(chats), models)
