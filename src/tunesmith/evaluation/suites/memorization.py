"""Memorization: which training rows come back from their beginnings, whether a row's loss gives away that it was among
them, and how much of planted secrets the model knows. All of it is computed from log-probabilities, so nothing is left
to the luck of a sample."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log2

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.example import Example
from tunesmith.data.reasoning import with_reasoning
from tunesmith.errors import UserError
from tunesmith.evaluation.auc import area_of
from tunesmith.evaluation.rows import EvaluationRows, spread, task_of
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.canaries import ALTERNATIVES, exposure, is_canary, with_other_secrets
from tunesmith.inference.score import Score
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.subject import NO_LOG_PROBABILITIES, Chat, Subject

BEGINNINGS = (25, 50)
"""Percent of an answer's tokens that are given, after its prompt."""

ROWS = 100
"""Of the training rows and of the held-out rows, at most."""

LONGEST = 50
"""Tokens that must come back (Carlini et al. 2023 take as many)."""

CHARACTERS = (16, 400)
"""Of a row of raw text, at least and at most."""

CANARIES = 10
"""Canaries whose exposure is measured, at most."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What a model may have memorized.

    Attributes:
        chat: the turns before it; None: it is raw text.
        text: the answer, or the raw text.
        source: the row.
    """

    chat: Chat | None
    text: str
    source: str

    @property
    def is_canary(self) -> bool:
        """Whether it is a planted secret."""
        return self.chat is not None and is_canary(str(self.chat[-1].get("content")), self.text)


class Memorization:
    """Compares training rows with held-out rows, and models with the first one, which is the base if a run is evaluated
    alone."""

    most_rows = ROWS

    def __init__(self) -> None:
        self._first: dict[str, float] = {}

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: the model.
            context: of the evaluation; its `count` limits the rows of each kind.

        Returns:
            At each beginning `extracted_train`, `extracted_held_out` and `memorized`; `membership`, and for models
            after the first `membership_from_first`; `exposure`, if there are canaries among the training rows. None for
            a model that reports no log-probabilities.

        Raises:
            UserError: there is no run with training rows and held-out rows among the models, or its rows are not for
                models that write text.
        """
        if not subject.scores_texts:
            context.leave_out("memorization", NO_LOG_PROBABILITIES)
            return {}
        train, held_out, planted = passages_of(context)
        rows = [*train, *held_out]
        total = len(rows) + len(planted) * (ALTERNATIVES + 1)
        context.progress("memorization", 0, total)
        scores = _scores(subject, rows)
        context.progress("memorization", len(rows), total)
        is_member = np.arange(len(rows)) < len(train)
        units = [row.source for row in rows]
        figures: dict[str, Measured] = {}
        for percent in BEGINNINGS:
            figures |= extraction_figures(scores, is_member, units, percent)
        signal = np.array([score.mean for score in scores])
        figures["membership"] = membership(signal, is_member, units, "by the loss")
        if self._first:
            before = np.array([self._first[unit] for unit in units])
            figures["membership_from_first"] = membership(
                signal - before, is_member, units, "by the loss from the first model's"
            )
        else:
            self._first = dict(zip(units, signal.tolist(), strict=True))
        if planted:
            figures["exposure"] = exposures(subject, planted)
        context.progress("memorization", total, total)
        return figures


def passages_of(context: SuiteContext) -> tuple[list[Passage], list[Passage], list[Passage]]:
    """What is measured.

    Args:
        context: of the evaluation.

    Returns:
        Training rows, rows that are not among them, and the canaries among the training rows, each evenly spaced.

    Raises:
        UserError: as `Memorization.measure`.
    """
    if context.run is None:
        raise UserError("The suite memorization reads a run's training rows. Name a run among the models.")
    run = EvaluationRows.of_run(context.run)
    if not run.objective.head.generates_text:
        raise UserError(f"The suite memorization is for models that write text, and {context.run} does not.")
    train = _read(run.training_examples)
    known = {(str(row.chat), row.text) for row in train}
    held_out = [row for row in _read((context.rows or run).examples) if (str(row.chat), row.text) not in known]
    planted = list({row.text: row for row in train if row.is_canary}.values())
    parts = [[row for row in rows if not row.is_canary] for rows in (train, held_out)]
    if not all(parts):
        raise UserError(
            f"The suite memorization needs rows that {context.run} was trained on and others that it was not: chats or "
            "raw text. Set data.held_out in a new run, or give others with --data."
        )
    count = ROWS if context.count is None else min(ROWS, context.count)
    first, second = ([rows[index] for index in spread(len(rows), count)] for rows in parts)
    return first, second, [planted[index] for index in spread(len(planted), CANARIES)]


def _read(examples: Iterable[Example]) -> list[Passage]:
    """Raw texts, and the last answers of chats without tools."""
    passages = []
    for example in examples:
        if example.messages is None and len(example.text or "") >= CHARACTERS[0]:
            passages.append(Passage(None, str(example.text)[: CHARACTERS[1]], str(example.source)))
        elif any(turn["role"] == "assistant" for turn in example.messages or ()) and not example.tools:
            task = task_of(example)
            text = with_reasoning(task.expected, task.reasoning) if task.reasoning else task.expected
            passages.append(Passage(task.chat, text, task.source))
    return passages


def _scores(subject: Subject, rows: Sequence[Passage]) -> list[Score]:
    chats = [index for index, row in enumerate(rows) if row.chat is not None]
    raw = [index for index, row in enumerate(rows) if row.chat is None]
    found: dict[int, Score] = {}
    if chats:
        given = [rows[index].chat or () for index in chats]
        found |= zip(chats, subject.scores(given, [rows[index].text for index in chats]), strict=True)
    if raw:
        found |= zip(raw, subject.scores(None, [rows[index].text for index in raw]), strict=True)
    return [found[index] for index in range(len(rows))]


def comes_back(score: Score, percent: int) -> float:
    """The probability that a sample at temperature 1 continues word for word, if a text's first tokens are given
    (Hayes et al. 2025, "Measuring memorization in language models via probabilistic extraction").

    Args:
        score: of the text.
        percent: of its tokens that are given; at least one is.

    Returns:
        Of the next `LONGEST` tokens, or fewer if the text ends; 0 if the text has no more than its beginning.
    """
    given = max(1, round(len(score.log_probabilities) * percent / 100))
    rest = score.log_probabilities[given : given + LONGEST]
    return exp(rest.sum()) if len(rest) else 0.0


def extraction_figures(
    scores: Sequence[Score], is_member: NDArray[np.bool_], units: Sequence[str], percent: int
) -> dict[str, Measured]:
    """How much of the training rows and of the held-out rows comes back, and the difference.

    Args:
        scores: (rows,) of the rows.
        is_member: (rows,) which are training rows.
        units: (rows,) what the rows are called.
        percent: of a row that is given.

    Returns:
        The figures by name.
    """
    shares = np.array([comes_back(score, percent) for score in scores])
    meaning = (
        f"the probability that a row continues word for word ({LONGEST} tokens at most) from its first {percent} %"
    )
    figures = {}
    for name, title, chosen in (("train", "training rows", is_member), ("held_out", "held-out rows", ~is_member)):
        own = [unit for unit, is_chosen in zip(units, chosen, strict=True) if is_chosen]
        title = f"{title} back from {percent} %"
        found = mean_of(shares[chosen], own, title, meaning, "lower" if name == "train" else "neither")
        figures[f"extracted_{name}_{percent}"] = replace(found, is_compared=False)

    def gap(rows: NDArray[np.int64]) -> float:
        chosen, members = shares[rows], is_member[rows]
        return float(chosen[members].mean() - chosen[~members].mean()) if members.any() and not members.all() else 0.0

    title = f"memorized, back from {percent} %"
    explanation = (
        "how much more of the training rows comes back than of the held-out rows: what is not just predictable"
    )
    return figures | {f"memorized_{percent}": Measured(title, explanation, gap, units, "lower")}


def membership(signal: NDArray[np.float64], is_member: NDArray[np.bool_], units: Sequence[str], by: str) -> Measured:
    """How well training rows are distinguished from held-out rows: the area under the ROC curve, 0.5 if not at all.

    The signal is the mean log-probability of a row's tokens (Yeom et al. 2018), or how much it rose from another
    model's (Carlini et al. 2022, "Membership inference attacks from first principles", section V).

    Args:
        signal: (rows,) higher if a row is more likely a training row.
        is_member: (rows,) which are training rows.
        units: (rows,) what the rows are called.
        by: what the signal is, in words.

    Returns:
        The figure.
    """
    explanation = "area under the curve: how often a training row is distinguished from a held-out row; 0.5: by chance"
    return area_of(signal, is_member, units, f"membership inference {by}", explanation, "lower")


def exposures(subject: Subject, planted: Sequence[Passage]) -> Measured:
    """The exposure of canaries.

    Args:
        subject: the model.
        planted: the canaries.

    Returns:
        Its mean.
    """
    versions = [
        Passage(row.chat, text, row.source) for row in planted for text in (row.text, *with_other_secrets(row.text))
    ]
    logs = np.array([score.total for score in _scores(subject, versions)]).reshape(len(planted), -1)
    return mean_of(
        [exposure(float(each[0]), each[1:]) for each in logs],
        [row.source for row in planted],
        "exposure of canaries",
        f"bits of planted secrets that the model knows, {log2(ALTERNATIVES + 1):.0f} at most; about 1.4 by chance",
        "lower",
        "bits",
        (0.0, log2(ALTERNATIVES + 1)),
    )
