"""What each checkpoint of a run gained on the task, against what it forgot elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.evaluation.figures import LOSS, figures_of
from tunesmith.evaluation.local_subject import LocalSubject
from tunesmith.evaluation.measured import Measured
from tunesmith.evaluation.measuring import Asked, Trial, measure
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.evaluation.statistics.bootstrap import Interval
from tunesmith.evaluation.subject import Subject
from tunesmith.evaluation.subjects import CHECKPOINTS, SubjectName, open_base, open_subject
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.forgetting import general_loss, general_texts
from tunesmith.evaluation.summary import summary
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.sampling import Sampling
from tunesmith.run import Events, Subscriber
from tunesmith.training.checkpoint_output import is_checkpoint

BASE = "base"
"""What the points are compared with."""

GENERAL = "forgetting.general_loss"

TOLERANCE = 0.01
"""The rise of the loss on general text that is allowed, as a share of the base's."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A checkpoint, or another model that was trained from the base.

    Attributes:
        name: such as `step-000050`.
        gain: by how much the loss on the held-out rows fell from the base's, in the objective's unit.
        gain_interval: the ends of its 95 % interval.
        forgetting: by how much the loss on general text rose from the base's, in bits of a byte.
        forgetting_interval: the ends of its 95 % interval.
    """

    name: str
    gain: float
    gain_interval: Interval
    forgetting: float
    forgetting_interval: Interval

    def described(self) -> dict[str, Any]:
        """Plain values: `name`, and `gain` and `forgetting` with `value` and `interval`."""
        return {
            "name": self.name,
            "gain": {"value": self.gain, "interval": self.gain_interval},
            "forgetting": {"value": self.forgetting, "interval": self.forgetting_interval},
        }


@dataclass(frozen=True, slots=True)
class ForgettingCurve:
    """Models that were trained from one base.

    Attributes:
        points: in the order of training.
        frontier: the points that no other one beats in gain and forgetting both.
        recommended: the point with the most gain among those that forgot no more than was allowed; None: all forgot
            more, or none gained.
        allowed: the most that a recommended one may have forgotten, in bits of a byte.
        loss_unit: of the gains.
        steps: of each rerun; None: the points are checkpoints.
    """

    points: tuple[CurvePoint, ...]
    frontier: tuple[CurvePoint, ...]
    recommended: CurvePoint | None
    allowed: float
    loss_unit: str
    steps: int | None = None

    def described(self) -> dict[str, Any]:
        """Plain values: `points`; names of the `frontier` and of what is `recommended`; the other attributes."""
        return {
            "points": [point.described() for point in self.points],
            "frontier": [point.name for point in self.frontier],
            "recommended": None if self.recommended is None else self.recommended.name,
            "allowed": self.allowed,
            "loss_unit": self.loss_unit,
            "steps": self.steps,
        }


@keep_freed_memory()
def forgetting_curve(
    run: str | Path,
    *,
    data: Sequence[str] | None = None,
    general: str | Path | None = None,
    tolerance: float = TOLERANCE,
    concurrent: int = CONCURRENT,
    device: str = "auto",
    cache: bool = True,
    subscribers: Sequence[Subscriber] = (),
) -> ForgettingCurve:
    """Measure the base and all kept checkpoints of a run, which need not be finished.

    Args:
        run: its directory. `train.keep_checkpoints` says how many checkpoints it keeps.
        data: files of rows; None: the run's held-out rows.
        general: a text file of general text; None: as the suite `forgetting`.
        tolerance: the rise of the loss on general text that is allowed, as a share of the base's.
        concurrent: the most texts that are computed at the same time; figures do not depend on it.
        device: for the models.
        cache: whether losses are kept in the user's cache, and read from it.
        subscribers: receive `progress` events (what, done, total), and `figures` events as soon as figures are known.

    Returns:
        The curve.

    Raises:
        UserError: it is no run of a model that writes text, or it has no checkpoints or no rows.
    """
    directory = writing_run(run)
    paths = checkpoints_of(directory)
    rows = EvaluationRows.of_run(directory) if data is None else EvaluationRows.of_files(data, directory)
    subjects = {path.name: SubjectName.parse(str(path)) for path in paths}
    opened = opened_points(subjects, concurrent, device, cache)
    return measured_curve(rows, directory, opened, general, tolerance, Events(*subscribers))


def writing_run(run: str | Path) -> Path:
    """The directory of a run whose forgetting can be measured.

    Args:
        run: its name.

    Returns:
        The directory.

    Raises:
        UserError: it is no run of a model that writes text.
    """
    directory = SubjectName.parse(str(run)).run
    if directory is None:
        raise UserError(f"{run} is not a run. A forgetting curve is of a run's checkpoints.")
    if not EvaluationRows.of_run(directory).objective.head.generates_text:
        raise UserError(f"{run} does not write text, so its loss on general text is not known.")
    return directory


def checkpoints_of(directory: Path) -> list[Path]:
    """The kept checkpoints of a run, in the order of training.

    Args:
        directory: of the run.

    Returns:
        Their directories.

    Raises:
        UserError: there are none.
    """
    paths = sorted(path for path in (directory / CHECKPOINTS).glob("step-*") if is_checkpoint(path))
    if not paths:
        raise UserError(f"{directory} has no checkpoints. Set train.checkpoint_every and train.keep_checkpoints.")
    return paths


def opened_points(names: Mapping[str, SubjectName], concurrent: int, device: str, keeps: bool) -> list[LocalSubject]:
    """The models of a curve.

    Args:
        names: by the points' names.
        concurrent: the most texts that are computed at the same time.
        device: of the models.
        keeps: whether results are kept in the user's cache.

    Returns:
        Not loaded yet.

    Raises:
        UserError: one cannot be opened.
    """
    subjects = (
        open_subject(name, column, concurrent=concurrent, device=device, keeps=keeps) for column, name in names.items()
    )
    return [subject for subject in subjects if isinstance(subject, LocalSubject)]


def measured_curve(
    rows: EvaluationRows,
    directory: Path,
    points: Sequence[LocalSubject],
    general: str | Path | None,
    tolerance: float,
    events: Events,
) -> ForgettingCurve:
    """Measure a run's base, and what was trained from it.

    Args:
        rows: of the task.
        directory: of the run.
        points: the trained models.
        general: a text file of general text; None: as the suite `forgetting`.
        tolerance: the rise of the loss on general text that is allowed, as a share of the base's.
        events: receive `progress` and `figures`.

    Returns:
        The curve.

    Raises:
        UserError: a model, the rows or the general text cannot be read.
    """
    recipe = EvaluationRows.of_run(directory).recipe
    base = open_base(recipe, points[0], BASE, points[0].keeps)
    asked = Asked({}, Sampling(1), 0, events)
    found = measure(Trial(rows, [base, *points], run=directory), asked, {"forgetting": _GeneralLoss(general)})
    objective = rows.objective
    models = {
        name: figures_of(side, found.tasks, objective.head, {}, objective.loss_unit) | found.suites[name]
        for name, side in found.sides.items()
    }
    result = summary(models, BASE)
    measured = tuple(_point(name, differences) for name, differences in result["differences"].items())
    allowed = tolerance * result["models"][BASE][GENERAL]["value"]
    return ForgettingCurve(measured, frontier(measured), recommended(measured, allowed), allowed, objective.loss_unit)


class _GeneralLoss:
    """Of the suite `forgetting`, the figure that the curve has; no answers are written for it."""

    def __init__(self, general: str | Path | None) -> None:
        self._texts = general_texts(general)

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`."""
        return {"general_loss": general_loss(self._texts, subject.scores(None, self._texts))}


def _point(name: str, differences: dict[str, dict[str, Any]]) -> CurvePoint:
    loss, general = differences[LOSS], differences[GENERAL]
    low, high = loss["interval"]
    return CurvePoint(name, -loss["value"], (-high, -low), general["value"], tuple(general["interval"]))


def frontier(points: Sequence[CurvePoint]) -> tuple[CurvePoint, ...]:
    """The points that no other one beats: none gains at least as much, forgets as little, and is better in one of both.

    Args:
        points: of the checkpoints.

    Returns:
        Some of them, in their order.
    """

    def beats(other: CurvePoint, point: CurvePoint) -> bool:
        is_as_good = other.gain >= point.gain and other.forgetting <= point.forgetting
        return is_as_good and (other.gain, other.forgetting) != (point.gain, point.forgetting)

    return tuple(point for point in points if not any(beats(other, point) for other in points))


def recommended(points: Sequence[CurvePoint], allowed: float) -> CurvePoint | None:
    """The checkpoint to use.

    Args:
        points: of the checkpoints.
        allowed: the most that it may have forgotten, in bits of a byte.

    Returns:
        The one with the most gain, the earliest of several; None if none that forgot so little gained anything.
    """
    fitting = [point for point in points if point.forgetting <= allowed and point.gain > 0]
    return max(fitting, key=lambda point: point.gain, default=None)
