"""Forgetting: what a model still knows and still says of what the first model did, on text and questions that have
nothing to do with the task."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from pathlib import Path
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import UserError
from tunesmith.evaluation.rows import spread
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.topic_prompts import off_topic
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score
from tunesmith.statistics.measured import Measured, mean_of, ratio_of
from tunesmith.subjects.subject import NO_LOG_PROBABILITIES, Answer, Chat, Subject

PIECES = 100
"""Of general text, at most."""

FEWEST = 8
"""Pieces of a user's text, at least."""

CHARACTERS = 400
"""Of a piece, at most."""

WORDS = 12
"""Of a piece, at least."""

ANSWER = 32
"""The most tokens of an answer to a neutral prompt."""


@dataclass(frozen=True)
class _First:
    """What the first model said to the neutral prompts, and the log-probabilities that it gave its samples."""

    greedy: Sequence[Answer]
    sampled: Sequence[Answer]
    scores: Sequence[Score]


class Forgetting:
    """Compares models with the first one, which is the base if a run is evaluated alone.

    Args:
        general: a text file, whose paragraphs are the general text; None: Python's own language reference.
    """

    most_rows = PIECES

    def __init__(self, general: str | None = None) -> None:
        self._texts = general_texts(general)
        self._first: _First | None = None

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: the model.
            context: of the evaluation; its `count` limits the pieces of text and the neutral prompts.

        Returns:
            `general_loss`; for models after the first also `general_unchanged` and `general_divergence`. What needs
            log-probabilities is left out for models that report none.

        Raises:
            UserError: the model does not write text, or a server does not answer.
        """
        figures = {}
        if not subject.scores_texts:
            context.leave_out("forgetting.general_loss", NO_LOG_PROBABILITIES)
        else:
            texts = [self._texts[index] for index in spread(len(self._texts), context.count or len(self._texts))]
            figures["general_loss"] = general_loss(texts, subject.scores(None, texts))
        trials = off_topic()
        trials = [trials[index] for index in spread(len(trials), context.count or len(trials))]
        chats: list[Chat] = [[{"role": "user", "content": trial.turns[0]}] for trial in trials]
        report = partial(_report, context, len(chats))
        greedy = subject.answers(chats, Sampling(ANSWER), report)
        if self._first is None:
            sampled = subject.answers(chats, Sampling(ANSWER, temperature=1.0), report)
            scores = subject.scores(chats, _texts(sampled)) if subject.scores_texts else []
            self._first = _First(greedy, sampled, scores)
            return figures
        first, names = self._first, [trial.name for trial in trials]
        figures["general_unchanged"] = mean_of(
            [float(one.text == other.text) for one, other in zip(first.greedy, greedy, strict=True)],
            names,
            "answers unchanged",
            f"neutral prompts whose answer has the same first {ANSWER} tokens as the first model's",
        )
        if subject.scores_texts and first.scores:
            scores = subject.scores(chats, _texts(first.sampled))
            found = divergence(first.sampled, first.scores, scores, names)
            figures |= {} if found is None else {"general_divergence": found}
        else:
            context.leave_out("forgetting.general_divergence", NO_LOG_PROBABILITIES)
        return figures


def general_texts(path: str | Path | None) -> list[str]:
    """Prose that has nothing to do with the task.

    Args:
        path: a text file with paragraphs between empty lines; None: Python's own language reference (`pydoc_data`).

    Returns:
        Pieces of paragraphs, evenly spaced over the text, each on one line.

    Raises:
        UserError: the file cannot be read, or is too short.
    """
    pieces = _all_pieces(path)
    return [pieces[index] for index in spread(len(pieces), PIECES)]


def other_texts(path: str | Path | None) -> list[str]:
    """What is left of the text, to train on what is not measured.

    Args:
        path: as in `general_texts`.

    Returns:
        The other pieces; none of a short text.

    Raises:
        UserError: as `general_texts`.
    """
    pieces = _all_pieces(path)
    measured = set(spread(len(pieces), PIECES))
    return [piece for index, piece in enumerate(pieces) if index not in measured]


def _all_pieces(path: str | Path | None) -> list[str]:
    if path is None:
        from pydoc_data.topics import topics  # 700 kB of text

        whole = "\n\n".join(topics[name] for name in sorted(topics))
        return [piece for piece in _pieces(whole) if piece[0].isalpha()]
    try:
        pieces = _pieces(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The general text {path} cannot be read: {error}.") from None
    if len(pieces) < FEWEST:
        raise UserError(
            f"{path} has {len(pieces)} paragraphs of {WORDS} words or more, too few for an interval. "
            f"Name a text file with at least {FEWEST}."
        )
    return pieces


def _pieces(text: str) -> list[str]:
    """The paragraphs, each once, cut where they are longer than a piece."""
    paragraphs = re.split(r"\n[ \t]*\n", text)
    pieces = (piece for paragraph in paragraphs for piece in wrap(" ".join(paragraph.split()), CHARACTERS))
    return list(dict.fromkeys(piece for piece in pieces if piece.count(" ") >= WORDS - 1))


def general_loss(texts: Sequence[str], scores: Sequence[Score]) -> Measured:
    """The loss on general text, by byte, so that models with different tokenizers can be compared.

    Args:
        texts: pieces of it.
        scores: of a model.

    Returns:
        −Σ log₂ p / bytes.
    """
    return ratio_of(
        np.array([-score.total / log(2) for score in scores]),
        np.array([len(text.encode()) for text in texts], np.int64),
        [f"piece {number}" for number in range(1, len(texts) + 1)],
        "loss on general text",
        "bits of a byte of prose that has nothing to do with the task",
        "lower",
        "bits",
    )


def divergence(
    sampled: Sequence[Answer], first: Sequence[Score], other: Sequence[Score], names: Sequence[str]
) -> Measured | None:
    """How far a model's answers are from the first model's: KL(first ‖ model), estimated from samples of the first.

    Of each sampled token, with r = p_model / p_first, r − 1 − log r is added up (Schulman 2020, "Approximating KL
    divergence", k3): unbiased, never negative, and of less variance than −log r.

    Args:
        sampled: the first model's answers, at temperature 1.
        first: its log-probabilities of them.
        other: the model's.
        names: of the prompts.

    Returns:
        Nats per token; None if the models do not have the same tokens.
    """
    if any(one.tokens != two.tokens for one, two in zip(first, other, strict=True)):
        return None
    sums, counts = np.zeros(len(sampled)), np.zeros(len(sampled), np.int64)
    for row, (answer, before, after) in enumerate(zip(sampled, first, other, strict=True)):
        ratios = _sampled(answer, after) - _sampled(answer, before)
        sums[row], counts[row] = (np.expm1(ratios) - ratios).sum(), len(ratios)
    return ratio_of(
        sums, counts, names, "divergence of answers",
        "KL of the first model's answers to neutral prompts from this model's, for each token; 0 if nothing changed",
    )  # fmt: skip


def _sampled(answer: Answer, score: Score) -> NDArray[np.float64]:
    """The log-probabilities of what was sampled: an answer that was cut off has not sampled its end."""
    logs = score.log_probabilities
    return logs[:-1] if answer.finish_reason == "length" and len(logs) > 1 else logs


def _texts(answers: Sequence[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def _report(context: SuiteContext, total: int, done: int) -> None:
    context.progress("forgetting", done, total)
