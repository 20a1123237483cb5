"""What each checkpoint of a run gained on the task, against what it forgot elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.evaluation.figures import LOSS, figures_of
from tunesmith.evaluation.measuring import Asked, Trial, measure
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.evaluation.subjects import CHECKPOINTS, SubjectName, open_base, open_subject
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.forgetting import general_loss, general_texts
from tunesmith.evaluation.summary import summary
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.sampling import Sampling
from tunesmith.run import Events, Subscriber
from tunesmith.statistics.bootstrap import Interval
from tunesmith.statistics.measured import Measured
from tunesmith.subjects.local_subject import LocalSubject
from tunesmith.subjects.subject import Subject
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


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """How gain and forgetting are measured.

    Attributes:
        data: files of rows; None: the run's held-out rows.
        general: a text file of general text; None: as the suite `forgetting`.
        tolerance: the rise of the loss on general text that is allowed, as a share of the base's.
        concurrent: the most texts that are computed at the same time; figures do not depend on it.
        device: for the models.
        cache: whether losses are kept in the user's cache, and read from it.
        subscribers: receive `progress` events (what, done, total), and `figures` events as soon as figures are known.
    """

    data: Sequence[str] | None = None
    general: str | Path | None = None
    tolerance: float = TOLERANCE
    concurrent: int = CONCURRENT
    device: str = "auto"
    cache: bool = True
    subscribers: Sequence[Subscriber] = ()

    def rows(self, directory: Path) -> EvaluationRows:
        """The rows of the task.

        Args:
            directory: of the run.

        Returns:
            Those of `data`, or the run's held-out ones.

        Raises:
            UserError: they cannot be read.
        """
        return EvaluationRows.of_run(directory) if self.data is None else EvaluationRows.of_files(self.data, directory)


@keep_freed_memory()
def forgetting_curve(run: str | Path, options: CurveOptions | None = None) -> ForgettingCurve:
    """Measure the base and all kept checkpoints of a run, which need not be finished.

    Args:
        run: its directory. `train.keep_checkpoints` says how many checkpoints it keeps.
        options: how; None: `CurveOptions()`.

    Returns:
        The curve.

    Raises:
        UserError: it is no run of a model that writes text, or it has no checkpoints or no rows.
    """
    directory = writing_run(run)
    points = {path.name: path for path in checkpoints_of(directory)}
    return measured_curve(directory, points, options or CurveOptions())


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


def _opened(points: Mapping[str, Path], options: CurveOptions) -> list[LocalSubject]:
    """The models of a curve, not loaded yet."""
    subjects = (
        open_subject(
            SubjectName.parse(str(path)), name,
            concurrent=options.concurrent, device=options.device, keeps=options.cache,
        )
        for name, path in points.items()
    )  # fmt: skip
    return [subject for subject in subjects if isinstance(subject, LocalSubject)]


def measured_curve(directory: Path, points: Mapping[str, Path], options: CurveOptions) -> ForgettingCurve:
    """Measure a run's base, and what was trained from it.

    Args:
        directory: of the run.
        points: the directories of the trained models, by name.
        options: how.

    Returns:
        The curve.

    Raises:
        UserError: a model, the rows or the general text cannot be read.
    """
    rows, trained = options.rows(directory), _opened(points, options)
    base = open_base(EvaluationRows.of_run(directory).recipe, trained[0], BASE, options.cache)
    asked = Asked({}, Sampling(1), 0, Events(*options.subscribers))
    general = {"forgetting": _GeneralLoss(options.general)}
    found = measure(Trial(rows, [base, *trained], run=directory), asked, general)
    objective = rows.objective
    models = {
        name: figures_of(side, found.tasks, objective.head, {}, objective.loss_unit) | found.suites[name]
        for name, side in found.sides.items()
    }
    result = summary(models, BASE)
    measured = tuple(_point(name, differences) for name, differences in result["differences"].items())
    allowed = options.tolerance * result["models"][BASE][GENERAL]["value"]
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
