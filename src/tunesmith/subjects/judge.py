"""A model as a judge of answers: single scores from 1 to 5, or which of two answers is better, in both orders.

A judge errs, prefers what stands first, and does not always reply as asked (Zheng et al. 2023). So failures are
counted, pairs are judged in both orders, its agreement with itself and with people is a figure beside its verdicts, and
people's labels correct its rates (`prediction_powered`).
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import UserError
from tunesmith.inference.sampling import Sampling
from tunesmith.metrics.metric import Case
from tunesmith.subjects.subject import Answer, Chat, Subject
from tunesmith.subjects.verdicts import HIGHEST, LOWEST, Verdicts

RUBRIC = """\
- It answers the question that was asked, wholly.
- What it says is true. If a good answer is given, it says the same as that one, in whatever words.
- It is clear, and says nothing beside the point. A longer answer is not a better one.
"""
"""What makes an answer good, if nothing else is said."""

REASON = 240
"""Characters of the reason that comes before a verdict."""

LONGEST = 1024
"""Tokens of a reply. A verdict comes within them, even if each byte of its reason is a token."""

AGAIN = 0.7
"""The temperature of the second time that answers are judged, to see whether a judge agrees with itself."""

_SCORE = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": REASON},
        "score": {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST},
    },
    "required": ["reason", "score"],
    "additionalProperties": False,
}
_BETTER = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": REASON},
        "better": {"type": "string", "enum": ["A", "B", "tie"]},
    },
    "required": ["reason", "better"],
    "additionalProperties": False,
}


class Judge:
    """A model that judges answers by a rubric.

    Args:
        subject: the model. Its replies are constrained to a JSON schema where it can be.
        rubric: what makes an answer good, in words.
        sampling: of its replies; the schema is added.
    """

    def __init__(self, subject: Subject, rubric: str, sampling: Sampling = Sampling(max_new_tokens=LONGEST)) -> None:  # noqa: B008  # frozen
        self._subject, self._rubric, self._sampling = subject, rubric, sampling

    @classmethod
    def by_file(cls, subject: Subject, rubric: str | Path) -> "Judge":
        """A judge by the rubric in a text file.

        Args:
            subject: the model.
            rubric: the file.

        Returns:
            The judge.

        Raises:
            UserError: the file cannot be read, or is empty.
        """
        try:
            text = Path(rubric).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The rubric {rubric} cannot be read: {error}.") from None
        if not text:
            raise UserError(f"The rubric {rubric} is empty. Write what makes an answer good.")
        return cls(subject, text)

    def scores(self, cases: Sequence[Case], done: Callable[[int], None] | None = None) -> Verdicts:
        """Score each answer from 1 to 5, twice.

        Args:
            cases: the answers.
            done: called with the number of replies so far.

        Returns:
            The scores.
        """
        values = self.single_scores(cases, done)
        again = self.single_scores(cases, _after(len(cases), done), AGAIN)
        return Verdicts(values, values, again, tuple(case.source for case in cases))

    def single_scores(
        self, cases: Sequence[Case], done: Callable[[int], None] | None = None, temperature: float | None = None
    ) -> NDArray[np.float64]:
        """Score each answer from 1 to 5, once.

        Args:
            cases: the answers.
            done: called with the number of replies so far.
            temperature: of the replies; None: the judge's own.

        Returns:
            (cases,); NaN where the reply could not be read.
        """
        ask = f'Reply with JSON: {{"reason": "…", "score": a whole number from {LOWEST} to {HIGHEST}}}.'
        replies = self._replies([self._single(case) for case in cases], ask, _SCORE, done, temperature)
        return np.array([_score(reply.text) for reply in replies], np.float64)

    def pairs(
        self, first: Sequence[Case], second: Sequence[Case], done: Callable[[int], None] | None = None
    ) -> Verdicts:
        """Judge which of two answers to the same question is better, each pair in both orders.

        Args:
            first: one model's answers.
            second: the other model's, to the same rows.
            done: called with the number of replies so far.

        Returns:
            The share of wins of the second model is the mean of the values. An answer wins if it wins in both orders.
        """
        ask = 'Reply with JSON: {"reason": "…", "better": "A", "B" or "tie"}.'
        pairs = list(zip(first, second, strict=True))
        straight = self._replies([self._pair(a, b) for a, b in pairs], ask, _BETTER, done)
        swapped = self._replies([self._pair(b, a) for a, b in pairs], ask, _BETTER, _after(len(pairs), done))
        ours = np.array([_better(reply.text) for reply in straight], np.float64)
        theirs = 1 - np.array([_better(reply.text) for reply in swapped], np.float64)
        values = np.where(ours == theirs, ours, 0.5)
        values[np.isnan(ours) | np.isnan(theirs)] = np.nan
        return Verdicts(values, ours, theirs, tuple(case.source for case in first))

    def _replies(
        self,
        chats: Sequence[str],
        ask: str,
        schema: dict[str, Any],
        done: Callable[[int], None] | None,
        temperature: float | None = None,
    ) -> list[Answer]:
        sampling = replace(self._sampling, schema=json.dumps(schema))
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        system = f"You judge answers. What makes an answer good:\n\n{self._rubric}\n\n{ask}"
        prompts: list[Chat] = [
            ({"role": "system", "content": system}, {"role": "user", "content": chat}) for chat in chats
        ]
        return self._subject.answers(prompts, sampling, done)

    def _single(self, case: Case) -> str:
        return f"{_question(case)}\n\n[Answer]\n{case.answer}"

    def _pair(self, a: Case, b: Case) -> str:
        return f"{_question(a)}\n\n[Answer A]\n{a.answer}\n\n[Answer B]\n{b.answer}"


def _after(count: int, done: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """What counts on from the replies of the first time."""
    return None if done is None else lambda more: done(count + more)


def _question(case: Case) -> str:
    reference = f"\n\n[A good answer]\n{case.expected}" if case.expected else ""
    return f"[Question]\n{case.prompt}{reference}"


def _reply(text: str, key: str) -> Any:
    """The value of a key in the last JSON object of a reply; None if there is none."""
    for part in (text, *reversed(re.findall(r"\{[^{}]*\}", text))):
        try:
            return json.loads(part)[key]
        except (ValueError, KeyError, TypeError):
            continue
    return None


def _score(text: str) -> float:
    found = _reply(text, "score")
    if isinstance(found, str) and found.strip().isdecimal():
        found = int(found)
    return float(found) if type(found) is int and LOWEST <= found <= HIGHEST else float("nan")


def _better(text: str) -> float:
    """1 if B is better, 0 if A."""
    return {"A": 0.0, "B": 1.0, "tie": 0.5}.get(str(_reply(text, "better")), float("nan"))
