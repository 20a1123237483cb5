"""A subject whose answers, log-probabilities and times are given, and a context that keeps what suites report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.evaluation.rows import Task
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.inference.model import Model
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score
from tunesmith.subjects.subject import Answer, Timing


class Given:
    """A subject that answers by a function of the last turn, and scores texts by a function."""

    name = "given"
    identity: str | None = None
    model: Model | None = None

    def __init__(self, answer: Callable[[str], str] = str, log_prob: Callable[[str], float] | None = None) -> None:
        self.answer, self.log_prob = answer, log_prob
        self.scores_texts = log_prob is not None
        self.timed: list[tuple[list[str], int, int]] = []
        self.asked: list[tuple[list[str], Sampling]] = []

    def answers(self, chats: Any, sampling: Sampling, done: Any = None) -> list[Answer]:
        texts = [str(chat[-1]["content"]) for chat in chats]
        self.asked.append((texts, sampling))
        if done is not None:
            done(len(chats))
        return [Answer(self.answer(text), finish_reason="stop") for text in texts]

    def scores(self, prompts: Any, texts: Sequence[str]) -> list[Score]:
        assert self.log_prob is not None
        return [Score(tuple(text), np.full(len(text), self.log_prob(text))) for text in texts]

    def timings(self, chats: Any, sampling: Sampling, concurrent: int) -> list[Timing]:
        texts = [str(chat[-1]["content"]) for chat in chats]
        self.timed.append((texts, sampling.max_new_tokens, concurrent))
        return [Timing(0.1 * (row + 1), 2.0, 8) for row in range(len(chats))]

    def uncached(self) -> "Given":
        return self

    def close(self) -> None:
        """Nothing."""


class Context:
    """A context that keeps what is reported and left out."""

    def __init__(self, tasks: Sequence[Task] = (), count: int | None = None, run: Path | None = None) -> None:
        self.progress: list[tuple[str, int, int]] = []
        self.left_out: dict[str, str] = {}
        self.context = SuiteContext(
            None, tasks, Sampling(16), count, lambda *each: self.progress.append(each), run, self.left_out.__setitem__
        )


def task(row: int, question: str, expected: str = "Yes.") -> Task:
    """A question of one turn."""
    return Task(({"role": "user", "content": question},), expected, f"row {row}")


def values(found: Any) -> dict[str, float]:
    """Of figures by name."""
    return {name: figure.value for name, figure in found.items()}
