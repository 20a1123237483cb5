"""A judge as a part of an evaluation: its verdicts on all models' answers, and how far they can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import UserError
from tunesmith.evaluation.figures import Figures
from tunesmith.evaluation.labels import Labels
from tunesmith.evaluation.measuring import Opened, Trial, emit_figures, progress_of
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.evaluation.subjects import SubjectName, column_names, open_subject
from tunesmith.evaluation.summary import with_interval
from tunesmith.metrics import Case
from tunesmith.run import Events
from tunesmith.statistics.measured import mean_of
from tunesmith.subjects.judge import RUBRIC, Judge
from tunesmith.subjects.local_subject import LocalSubject
from tunesmith.subjects.served_subject import ServedSubject
from tunesmith.subjects.verdicts import (
    SCORES,
    WIN_OR_LOSS,
    Verdicts,
    agreement_with_itself,
    agreement_with_people,
    corrected_by_people,
    score_figure,
    wins_figure,
)

SCORE, WINS = "judge.score", "judge.wins"

ENOUGH = 2
"""Labels of judged answers from which the judge's mean is corrected."""


@dataclass(frozen=True)
class Judged:
    """The result of judging.

    Attributes:
        figures: by column.
        report: `judge` in `evaluation.json`.
    """

    figures: Mapping[str, Figures]
    report: dict[str, Any]


def open_judging(
    judge: str | None,
    rubric: str | Path | None,
    pairs: bool,
    labels: str | Path | None,
    trials: Sequence[Trial],
    count: int | None,
    *,
    concurrent: int,
    device: str,
    keeps: bool,
) -> "Judging | None":
    """The judge of an evaluation, if it has one.

    Args:
        judge: a model's name as `SubjectName` reads it; None: there is no judge.
        rubric: a file.
        pairs: whether answers are compared with the first model's.
        labels: a file of people's.
        trials: the models and rows.
        count: how many rows are answered; None: all.
        concurrent, device, keeps: as in `open_subject`.

    Returns:
        The judge, with its rubric and labels read.

    Raises:
        UserError: one of them cannot be read; there is nothing to judge; or options of a judge are given without one.
    """
    if judge is None:
        given = {"--rubric": rubric is not None, "--judge-pairs": pairs, "--labels": labels is not None}
        for option in (name for name, is_given in given.items() if is_given):
            raise UserError(f"{option} is for a judge, and there is none. Name a model with --judge.")
        return None
    if not any(_writes_answers(trial.rows, count) for trial in trials):
        raise UserError("--judge judges written answers to questions, and there are none. Use other --rows or --data.")
    columns = [subject.name for subject in trials[0].subjects]
    if pairs and len(columns) < 2:
        raise UserError("--judge-pairs compares other models' answers with the first one's. Name a second model.")
    name = SubjectName.parse(judge)
    subject = open_subject(name, column_names([name])[0], concurrent=concurrent, device=device, keeps=keeps)
    reference = columns[0] if pairs else None
    people = None if labels is None else Labels.read(labels, reference)
    asked = Judge(subject, RUBRIC) if rubric is None else Judge.by_file(subject, rubric)
    _refuse_absent(subject)
    return Judging(subject, asked, None if rubric is None else str(rubric), reference, people)


def _refuse_absent(subject: Opened) -> None:
    """Refuse a judge that cannot write, before anything is computed.

    Raises:
        UserError: the model writes no text, or the server that is to name one does not answer.
    """
    if isinstance(subject, LocalSubject):
        subject.model.require("generate")
    else:
        subject.client.model  # noqa: B018


def _writes_answers(rows: EvaluationRows | None, count: int | None) -> bool:
    return rows is not None and rows.objective.head.generates_text and bool(rows.tasks(count))


@dataclass(frozen=True)
class Judging:
    """A judge, and what it is asked.

    Attributes:
        subject: the model that judges.
        judge: the same, with its rubric.
        rubric: the rubric's file; None: `RUBRIC`.
        reference: the column that the other models' answers are compared with; None: each answer is scored alone.
        labels: people's, of some of the answers.
    """

    subject: Opened
    judge: Judge
    rubric: str | None
    reference: str | None
    labels: Labels | None

    def judged(self, cases: Mapping[str, Sequence[Case]], events: Events) -> Judged:
        """Judge all models' answers, after all of them were written.

        Args:
            cases: by column, of the same rows.
            events: receive `progress` and `figures`.

        Returns:
            The figures, and the report.

        Raises:
            UserError: the judge cannot be asked, or no label is of an answer.
        """
        self._refuse_other_labels(cases)
        try:
            verdicts = {column: self._verdicts(column, cases, events) for column in cases if column != self.reference}
        finally:
            self.subject.close()
        figures = {column: self._figures(each) for column, each in verdicts.items()}
        if self.reference is not None:
            figures = {self.reference: self._ties(cases[self.reference]), **figures}
        for column, found in figures.items():
            emit_figures(events, column, None, found)
        return Judged(figures, self._report(verdicts))

    def _verdicts(self, column: str, cases: Mapping[str, Sequence[Case]], events: Events) -> Verdicts:
        own, progress = cases[column], progress_of(events, self.subject.name)

        def done(count: int) -> None:
            progress(f"verdicts on {column}", count, 2 * len(own))

        done(0)
        if self.reference is None:
            return self.judge.scores(own, done)
        return self.judge.pairs(cases[self.reference], own, done)

    def _figures(self, verdicts: Verdicts) -> Figures:
        """The figure; none if no reply could be read."""
        if not len(verdicts.judged):
            return {}
        judge = self.subject.name
        if self.reference is None:
            return {SCORE: score_figure(verdicts, judge)}
        return {WINS: wins_figure(verdicts, judge)}

    def _ties(self, cases: Sequence[Case]) -> Figures:
        """Of the first model, compared with itself: the difference from it says whether another model is preferred."""
        half, units = np.full(len(cases), 0.5), [case.source for case in cases]
        return {WINS: mean_of(half, units, f"preferred by {self.subject.name}", "itself", bounds=(0.5, 0.5))}

    def _refuse_other_labels(self, cases: Mapping[str, Sequence[Case]]) -> None:
        """Raises:
        UserError: no label is of an answer.
        """
        judged = [(case.source, column) for column, own in cases.items() if column != self.reference for case in own]
        if self.labels is not None and not any(each in self.labels.values for each in judged):
            source, column = judged[0]
            raise UserError(
                f"{self.labels.file}: no label is of an answer that is judged. The first such answer has "
                f"source: {source}, model: {column}."
            )

    def _report(self, verdicts: Mapping[str, Verdicts]) -> dict[str, Any]:
        return {
            "name": self.subject.name,
            "rubric": self.rubric,
            "pairs": self.reference is not None,
            "refused_schema": self.subject.refused_schema if isinstance(self.subject, ServedSubject) else None,
            "labels": None if self.labels is None else {"file": str(self.labels.file), "rows": len(self.labels.values)},
            "models": {column: self._about(column, each) for column, each in verdicts.items()},
        }

    def _about(self, column: str, verdicts: Verdicts) -> dict[str, Any]:
        """What a reader must know to trust the verdicts on a model."""
        about: dict[str, Any] = {"replies": verdicts.replies, "unread": verdicts.failures, "itself": None}
        if len(verdicts.twice):
            same, chance = agreement_with_itself(verdicts)
            about["itself"] = with_interval(same) | {"chance": chance}
        if self.labels is not None:
            about |= self._by_people(self.labels.of(column, verdicts.sources), verdicts)
        values = (None if np.isnan(value) else value for value in verdicts.values.tolist())
        return about | {"verdicts": dict(zip(verdicts.sources, values, strict=True))}

    def _by_people(self, labels: NDArray[np.float64], verdicts: Verdicts) -> dict[str, Any]:
        """How far the judge agrees with labels (cases,), and what they make of its mean."""
        both = int((~np.isnan(labels) & ~np.isnan(verdicts.values)).sum())
        about: dict[str, Any] = {"labels": both, "people": None, "kappa": None, "corrected": None}
        if both:
            agreement = agreement_with_people(verdicts, labels)
            about |= {"people": with_interval(agreement["agreement"]), "kappa": with_interval(agreement["kappa"])}
        if both >= ENOUGH:
            low, high = scale = SCORES if self.reference is None else WIN_OR_LOSS
            value, ends = corrected_by_people(verdicts, labels, scale)
            about["corrected"] = {"value": value, "interval": [max(low, ends[0]), min(high, ends[1])]}
        return about
