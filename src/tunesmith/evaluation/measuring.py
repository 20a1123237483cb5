"""What each model computes in an evaluation: its loss on the rows, its answers or predictions, and suites' figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunesmith.config.head import Head
from tunesmith.errors import UserError
from tunesmith.evaluation.figures import Figures, Side, answer_figures, loss_figures, prediction_figures
from tunesmith.evaluation.rows import EvaluationRows, Task, units_of
from tunesmith.evaluation.suite import Suite, SuiteContext, measure_suite
from tunesmith.evaluation.summary import about_figure, with_interval
from tunesmith.heads.head_file import described_head
from tunesmith.inference.sampling import Sampling
from tunesmith.metrics import Metric
from tunesmith.run import Events
from tunesmith.subjects.local_subject import TOKENS, LocalSubject
from tunesmith.subjects.served_subject import ServedSubject
from tunesmith.subjects.subject import NO_LOG_PROBABILITIES, Answer, Subject

Opened = LocalSubject | ServedSubject


@dataclass(frozen=True)
class Asked:
    """How models are evaluated.

    Attributes:
        metrics: of written answers, by name.
        sampling: how answers are written.
        count: how many rows are answered; None: all.
        events: receive `progress` and `figures`.
    """

    metrics: Mapping[str, Metric]
    sampling: Sampling
    count: int | None
    events: Events


@dataclass(frozen=True)
class Trial:
    """Models on some rows: one for each fold of a run, else one.

    Attributes:
        rows: what they are evaluated on; None: only suites are measured.
        subjects: the models; the first is the one that the others are compared with.
        fold: of the run.
        run: the directory of the run whose training rows suites may read; None: there is none among the models.
        left_out: models that could not be opened, and why, by column name.
        are_forms: whether the models are forms of the first one, and left out if they cannot be computed here.
    """

    rows: EvaluationRows | None
    subjects: Sequence[Subject]
    fold: int | None = None
    run: Path | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    are_forms: bool = False


@dataclass(frozen=True)
class Measurement:
    """What the models of a trial computed.

    Attributes:
        sides: by column name; none without rows.
        tasks: what they answered.
        suites: the figures of the suites, by column name.
        left_out: why, by the column of a model that could not be computed here, or by `FIGURES of COLUMN`.
    """

    sides: Mapping[str, Side]
    tasks: Sequence[Task]
    suites: Mapping[str, Figures]
    left_out: Mapping[str, str]


def measure(trial: Trial, asked: Asked, suites: Mapping[str, Suite]) -> Measurement:
    """Evaluate a trial's models, one at a time, and emit each figure as soon as it is known.

    Args:
        trial: models and rows.
        asked: how.
        suites: to measure beside the rows, by name.

    Returns:
        What they computed.

    Raises:
        UserError: a model or the rows cannot be read, or do not fit each other; a user's code fails.
    """
    sides: dict[str, Side] = {}
    found: dict[str, Figures] = {}
    left_out: dict[str, str] = {}
    tasks: Sequence[Task] = []
    for subject in trial.subjects:
        try:
            if trial.rows is not None:
                one = _OneModel(subject, trial.rows, asked, trial.fold)
                tasks = tasks or one.tasks()
                sides[subject.name] = one.side(tasks)
                left_out |= {} if one.without_loss is None else {f"loss of {subject.name}": one.without_loss}
            found[subject.name] = _suite_figures(subject, trial, tasks, asked, suites, left_out)
        except UserError as error:
            if not trial.are_forms or subject is trial.subjects[0]:
                raise
            left_out[subject.name] = str(error)
        finally:
            subject.close()
    return Measurement(sides, tasks, found, left_out)


def _suite_figures(
    subject: Subject,
    trial: Trial,
    tasks: Sequence[Task],
    asked: Asked,
    suites: Mapping[str, Suite],
    left_out: dict[str, str],
) -> Figures:
    """All suites' figures of a model, emitted as soon as they are known; adds to what is left out."""

    def leave_out(what: str, why: str) -> None:
        left_out[f"{what} of {subject.name}"] = why

    progress = progress_of(asked.events, subject.name)
    context = SuiteContext(trial.rows, tasks, asked.sampling, asked.count or None, progress, trial.run, leave_out)
    found: Figures = {}
    for name, suite in suites.items():
        figures = measure_suite(name, suite, subject, context)
        emit_figures(asked.events, subject.name, trial.fold, figures)
        found |= figures
    return found


class _OneModel:
    """A model and the rows of a trial."""

    def __init__(self, subject: Subject, rows: EvaluationRows, asked: Asked, fold: int | None) -> None:
        self._subject, self._rows, self._asked, self._fold = subject, rows, asked, fold
        self._within = "" if fold is None else f", fold {fold}"
        self._prepared = None
        if isinstance(subject, LocalSubject):
            _refuse_other_head(subject, self._head)
            self._prepared = rows.prepared(subject.tokenizer)

    @property
    def _head(self) -> Head:
        head: Head = self._rows.objective.head
        return head

    def tasks(self) -> Sequence[Task]:
        """What is answered; the same for every model."""
        if self._head.generates_text:
            return self._rows.tasks(self._asked.count)
        if self._prepared is None:
            what = "is a server" if self._subject.model is None else "has a prompt"
            raise UserError(f"{self._subject.name} {what}, and the rows are for a model that does not write text.")
        return self._rows.labeled(self._prepared.held_out)

    def side(self, tasks: Sequence[Task]) -> Side:
        """Everything that the model computes."""
        side = self._with_losses(Side(None))
        return self._answered(side, tasks) if self._head.generates_text else self._predicted(side, tasks)

    @property
    def without_loss(self) -> str | None:
        """Why the model has no loss on the rows; None: it has."""
        if self._subject.model is None:
            return NO_LOG_PROBABILITIES
        if not isinstance(self._subject, LocalSubject):
            return "it has a prompt, and a loss is of rows as they were trained on"
        if self._subject.head.kind != self._head.kind:  # a decoder beside an encoder–decoder
            return f"the rows are for a model that ends in {self._head.kind}, so that only the answers are alike"
        return None

    def _with_losses(self, side: Side) -> Side:
        subject, head = self._subject, self._head
        if self.without_loss is not None or not isinstance(subject, LocalSubject) or self._prepared is None:
            return side
        table, objective = self._prepared.held_out, self._rows.objective
        report = self._report("loss", len(table))
        losses = subject.losses(objective, table, self._budget, report)
        units = units_of(table)
        figures = loss_figures(losses, units, head, objective.loss_unit)
        return self._emitted(replace(side, losses=losses, units=units), figures)

    def _answered(self, side: Side, tasks: Sequence[Task]) -> Side:
        report = self._report("answers", len(tasks))
        answers = self._subject.answers([task.chat for task in tasks], self._asked.sampling, report)
        return self._emitted(replace(side, answers=answers), answer_figures(answers, tasks, self._asked.metrics))

    def _predicted(self, side: Side, tasks: Sequence[Task]) -> Side:
        assert isinstance(self._subject, LocalSubject)
        assert self._prepared is not None
        predictions = self._subject.predictions(self._rows.objective, self._prepared, self._budget)
        answers = [Answer(self._head.describe(output)) for output in predictions.outputs] if tasks else []
        figures = prediction_figures(predictions, side.units, self._head.metrics)
        return self._emitted(replace(side, predictions=predictions, answers=answers), figures)

    @property
    def _budget(self) -> int:
        """The most tokens in a batch."""
        return self._rows.recipe.train.tokens_per_batch or TOKENS

    def _report(self, what: str, total: int) -> Callable[[int], None]:
        progress = progress_of(self._asked.events, self._subject.name)

        def report(done: int) -> None:
            progress(f"{what}{self._within}", done, total)

        report(0)
        return report

    def _emitted(self, side: Side, figures: Figures) -> Side:
        """The results with their figures, which are emitted."""
        emit_figures(self._asked.events, self._subject.name, self._fold, figures)
        return side.with_figures(figures)


def progress_of(events: Events, model: str) -> Callable[[str, int, int], None]:
    """What emits a model's progress.

    Args:
        events: receive `progress`.
        model: its column.

    Returns:
        To be called with what is done, how much of it, and how much there is.
    """
    return lambda what, done, total: events.emit("progress", what=f"{model}: {what}", done=done, total=total)


def emit_figures(events: Events, model: str, fold: int | None, figures: Figures) -> None:
    """Emit a model's figures, with their intervals.

    Args:
        events: receive `figures`, unless there are none.
        model: its column.
        fold: of the run.
        figures: by name.
    """
    shown = {name: about_figure(measured) | with_interval(measured) for name, measured in figures.items()}
    if shown:
        events.emit("figures", model=model, fold=fold, figures=shown)


def _refuse_other_head(subject: LocalSubject, head: Head) -> None:
    """Refuse a model that does not do what the rows are for.

    Raises:
        UserError: it does something else, or has other labels.
    """
    both_write = subject.head.generates_text and head.generates_text
    if not both_write and described_head(subject.head) != described_head(head):
        raise UserError(
            f"{subject.name} ends in {subject.head.kind}, and the rows are for {head.kind} with the same outputs. "
            "Evaluate models of one kind together."
        )
