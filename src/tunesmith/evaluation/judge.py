"""A model as a judge of answers: single scores from 1 to 5, or which of two answers is better, in both orders.

A judge errs, prefers what stands first, and does not always reply as asked (Zheng et al. 2023). So failures are
counted, pairs are judged in both orders, its agreement with itself and with people is a figure beside its verdicts, and
people's labels correct its rates (`prediction_powered`).
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import UserError
from tunesmith.evaluation.measured import Measured, mean_of
from tunesmith.evaluation.metrics.metric import Case
from tunesmith.evaluation.prediction_powered import prediction_powered
from tunesmith.evaluation.statistics import Interval
from tunesmith.evaluation.subject import Answer, Chat, Subject
from tunesmith.inference.sampling import Sampling

LOWEST, HIGHEST = 1, 5
"""The scale of single scores."""

AGAIN = 0.7
"""The temperature of the second time that answers are judged, to see whether a judge agrees with itself."""

_SCORE = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": 300},
        "score": {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST},
    },
    "required": ["reason", "score"],
    "additionalProperties": False,
}
_BETTER = {
    "type": "object",
    "properties": {"reason": {"type": "string", "maxLength": 300}, "better": {"enum": ["A", "B", "tie"]}},
    "required": ["reason", "better"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a judge said about the cases.

    Attributes:
        values: (cases,) the score, or 1 if the second answer is better, 0 if the first, 0.5 if neither or if the order
            decided; NaN where the judge's reply could not be read.
        first: (cases,) as judged the first time; of pairs, in the given order.
        again: (cases,) as judged the second time; of pairs, in the other order.
        sources: of the cases.
    """

    values: NDArray[np.float64]
    first: NDArray[np.float64]
    again: NDArray[np.float64]
    sources: tuple[str, ...]

    @property
    def judged(self) -> NDArray[np.int64]:
        """(judged,) the cases with a value."""
        return np.flatnonzero(~np.isnan(self.values))

    @property
    def failures(self) -> int:
        """Replies that could not be read, of twice as many as there are cases."""
        return int(np.isnan(self.first).sum() + np.isnan(self.again).sum())


class Judge:
    """A model that judges answers by a rubric.

    Args:
        subject: the model. Its replies are constrained to a JSON schema where it can be.
        rubric: what makes an answer good, in words.
        sampling: of its replies; the schema is added.
    """

    def __init__(self, subject: Subject, rubric: str, sampling: Sampling = Sampling(max_new_tokens=256)) -> None:  # noqa: B008  # frozen
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
        chats = [self._single(case) for case in cases]
        ask = f'Reply with JSON: {{"reason": "…", "score": a whole number from {LOWEST} to {HIGHEST}}}.'
        first = self._replies(chats, ask, _SCORE, done)
        second = self._replies(chats, ask, _SCORE, done, AGAIN)
        values, again = (np.array([_score(reply.text) for reply in replies], np.float64) for replies in (first, second))
        return Verdicts(values, values, again, tuple(case.source for case in cases))

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
        swapped = self._replies([self._pair(b, a) for a, b in pairs], ask, _BETTER, done)
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


def score_figures(verdicts: Verdicts, judge: str) -> dict[str, Measured]:
    """The judge's scores, and how far it can be trusted.

    Args:
        verdicts: of `Judge.scores`.
        judge: the judge's name.

    Returns:
        `judged`: the mean score; `judge_agrees_with_itself`: the share of cases with the same score the second time.
    """
    return {
        "judged": _mean(verdicts, f"judged by {judge}", f"mean score from {LOWEST} to {HIGHEST}", "points"),
        "judge_agrees_with_itself": _self_agreement(
            verdicts, "the same score when asked again with other random numbers"
        ),
    }


def pair_figures(verdicts: Verdicts, judge: str) -> dict[str, Measured]:
    """How often the judge prefers the second model, and how far it can be trusted.

    Args:
        verdicts: of `Judge.pairs`.
        judge: the judge's name.

    Returns:
        `wins`: the share, ties counting half; `judge_agrees_with_itself`: the share of pairs with the same winner in
        both orders.
    """
    return {
        "wins": _mean(verdicts, f"preferred by {judge}", "answers preferred, ties counting half", "share"),
        "judge_agrees_with_itself": _self_agreement(verdicts, "the same winner when the answers change places"),
    }


def agreement_with_people(verdicts: Verdicts, labels: NDArray[np.float64]) -> dict[str, Measured]:
    """How far the judge agrees with people's labels of the same cases.

    Args:
        verdicts: the judge's.
        labels: (cases,) on the judge's scale; NaN: no label.

    Returns:
        `agreement`: the share of equal values; `kappa`: Cohen's with quadratic weights (Cohen 1968), 0 by chance and 1
        if always equal.

    Raises:
        ValueError: no case has both.
    """
    from sklearn.metrics import cohen_kappa_score

    both = np.flatnonzero(~np.isnan(verdicts.values) & ~np.isnan(labels))
    if not len(both):
        raise ValueError("no case has both a verdict and a label")
    ours, theirs = verdicts.values[both], labels[both]
    units = [verdicts.sources[row] for row in both.tolist()]
    kinds = np.unique(np.concatenate([ours, theirs]))
    a, b = np.searchsorted(kinds, ours), np.searchsorted(kinds, theirs)

    def kappa(rows: NDArray[np.int64]) -> float:
        if (a[rows] == b[rows]).all():
            return 1.0
        return float(cohen_kappa_score(a[rows], b[rows], labels=np.arange(len(kinds)), weights="quadratic"))

    equal = (ours == theirs).astype(np.float64)
    return {
        "agreement": mean_of(equal, units, "judge agrees with people", "cases with the same value"),
        "kappa": Measured(
            "kappa", "agreement of judge and people beyond chance, by quadratic weights", kappa, units, unit="kappa"
        ),
    }


def corrected_by_people(verdicts: Verdicts, labels: NDArray[np.float64]) -> tuple[float, Interval]:
    """The mean that people would give to all cases, from the judge's values and the labels of some.

    Args:
        verdicts: the judge's.
        labels: (cases,) on the judge's scale; NaN: no label. Which cases have one must not depend on their quality.

    Returns:
        The mean, and the ends of its 95 % interval.

    Raises:
        ValueError: fewer than two cases have both a verdict and a label.
    """
    judged = ~np.isnan(verdicts.values)
    labeled = judged & ~np.isnan(labels)
    return prediction_powered(verdicts.values[labeled], labels[labeled], verdicts.values[judged & ~labeled])


def _mean(verdicts: Verdicts, title: str, about: str, unit: str) -> Measured:
    """The mean over the cases whose verdict could be read, which the explanation counts."""
    units = [verdicts.sources[row] for row in verdicts.judged.tolist()]
    read = f"{about}; {verdicts.failures:,} of {2 * len(verdicts.values):,} replies could not be read"
    return mean_of(verdicts.values[verdicts.judged], units, title, read, unit=unit)


def _self_agreement(verdicts: Verdicts, about: str) -> Measured:
    both = np.flatnonzero(~np.isnan(verdicts.first) & ~np.isnan(verdicts.again))
    equal = (verdicts.first[both] == verdicts.again[both]).astype(np.float64)
    return mean_of(equal, [verdicts.sources[row] for row in both.tolist()], "judge agrees with itself", about)


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
