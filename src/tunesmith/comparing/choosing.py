"""What is chosen on the development rows: the best of the user's prompts, and how many examples a prompt has."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.example import Example
from tunesmith.evaluation.rows import Task
from tunesmith.evaluation.suites.task_score import scored
from tunesmith.inference.sampling import Sampling
from tunesmith.metrics import Metric
from tunesmith.prompting.prompt import Prompt
from tunesmith.prompting.prompted import Prompted
from tunesmith.prompting.race import race
from tunesmith.prompting.shots import Shots
from tunesmith.retrieval.encoder import Encoder
from tunesmith.run import Events
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.subject import Subject

CHOICES = ("random", "similar")
"""How examples are chosen: at random, the same for all questions; or those whose questions are most like the asked
one."""


@dataclass(frozen=True)
class Chosen:
    """A prompt that was chosen.

    Attributes:
        name: of the candidate.
        prompt: its text.
        shots: its examples; None if it has none.
        rows: of the training rows, that it needs.
        scores: each candidate's mean on the development rows that it answered, by name.
        seconds: that the choice took.
    """

    name: str
    prompt: Prompt
    shots: Shots | None
    rows: int
    scores: Mapping[str, float]
    seconds: float

    def applied(self, subject: Subject, name: str) -> Prompted:
        """A model with the prompt.

        Args:
            subject: the model.
            name: of the way.
        """
        return Prompted(subject, self.prompt, self.shots, name)

    def described(self) -> dict[str, Any]:
        """Plain values: `name`, `version` of the prompt, `scores`."""
        return {"name": self.name, "version": self.prompt.version, "scores": dict(self.scores)}


def choose_prompt(
    base: Subject, files: Sequence[str], tasks: Sequence[Task], metric: Metric, sampling: Sampling, events: Events
) -> Chosen:
    """The best of the user's prompts.

    Args:
        base: the model that reads them.
        files: of the prompts.
        tasks: the development rows.
        metric: with a score of a single answer.
        sampling: how answers are written.
        events: receive `progress`.

    Returns:
        The winner; of equals, the first.

    Raises:
        UserError: a prompt cannot be read.
    """
    prompts = {Path(file).name: Prompt.load(file) for file in files}
    candidates = {name: (prompt, Shots.of(prompt)) for name, prompt in prompts.items()}
    return _best(base, candidates, dict.fromkeys(prompts, 0), tasks, metric, sampling, events, "prompts")


def choose_shots(
    base: Subject,
    train: Sequence[Example],
    counts: Sequence[int],
    tasks: Sequence[Task],
    metric: Metric,
    sampling: Sampling,
    events: Events,
    encoder: str | None = None,
) -> Chosen:
    """The best number of examples, and how they are chosen.

    Args:
        base: the model that reads them.
        train: where they come from.
        counts: that are tried.
        tasks: the development rows.
        metric: with a score of a single answer.
        sampling: how answers are written.
        events: receive `progress`.
        encoder: by whose vectors questions are compared; None: by their words.

    Returns:
        The winner; of equals, the fewest, and those at random.
    """
    candidates, rows = {}, {}
    vectors = None if encoder is None else Encoder(encoder)
    for how in CHOICES:
        for count in sorted({min(count, len(train)) for count in counts}):
            name = f"{count} {how}"
            candidates[name] = (Prompt(), Shots(train, count, how, 0, vectors))
            rows[name] = count if how == "random" else len(train)
    return _best(base, candidates, rows, tasks, metric, sampling, events, "examples")


def _best(
    base: Subject,
    candidates: Mapping[str, tuple[Prompt, Shots | None]],
    rows: Mapping[str, int],
    tasks: Sequence[Task],
    metric: Metric,
    sampling: Sampling,
    events: Events,
    what: str,
) -> Chosen:
    """The winner of a race on the rows (`tunesmith.prompting.race`)."""
    started, expected = time.perf_counter(), [task.expected for task in tasks]

    def measure(names: Sequence[str], number: int, count: int) -> dict[str, Measured]:
        figures = {}
        for done, name in enumerate(names):
            events.emit("progress", what=f"{what}, round {number}", done=done, total=len(names))
            subject = Prompted(base, *candidates[name], name)
            answers = subject.answers([task.chat for task in tasks[:count]], sampling)
            units, scores = [task.source for task in tasks[:count]], scored(metric, answers, expected[:count])
            figures[name] = mean_of(scores, units, metric.title, metric.explanation, metric.better, metric.unit)
        events.emit("progress", what=f"{what}, round {number}", done=len(names), total=len(names))
        return figures

    places = race(list(candidates), measure, len(tasks))
    best = next(name for name, place in places.items() if place.why == "winner")
    scores = {name: place.figure.value for name, place in places.items()}
    return Chosen(best, *candidates[best], rows[best], scores, time.perf_counter() - started)
