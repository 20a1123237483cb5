"""What each checkpoint of a run gained on the task, against what it forgot elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import Recipe
from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.evaluation.figures import LOSS, figures_of, summary
from tunesmith.evaluation.local_subject import LocalSubject
from tunesmith.evaluation.measured import Measured
from tunesmith.evaluation.measuring import Asked, Trial, measure
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.evaluation.statistics import Interval
from tunesmith.evaluation.subject import Subject
from tunesmith.evaluation.subjects import CHECKPOINTS, SubjectName, open_base, open_subject
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.forgetting import general_loss, general_texts
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.sampling import Sampling
from tunesmith.run import Events, Subscriber
from tunesmith.training.checkpoint_output import is_checkpoint

BASE = "base"
"""What the checkpoints are compared with."""

GENERAL = "forgetting.general_loss"


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A checkpoint.

    Attributes:
        checkpoint: its name, such as `step-000050`.
        gain: by how much the loss on the held-out rows fell from the base's, in the objective's unit.
        gain_interval: the ends of its 95 % interval.
        forgetting: by how much the loss on general text rose from the base's, in bits of a byte.
        forgetting_interval: the ends of its 95 % interval.
    """

    checkpoint: str
    gain: float
    gain_interval: Interval
    forgetting: float
    forgetting_interval: Interval


@dataclass(frozen=True, slots=True)
class ForgettingCurve:
    """The checkpoints of a run.

    Attributes:
        points: in the order of training.
        frontier: the points that no other one beats in gain and forgetting both.
        recommended: the point with the most gain among those that forgot no more than was allowed; None: all forgot
            more, or none gained.
    """

    points: tuple[CurvePoint, ...]
    frontier: tuple[CurvePoint, ...]
    recommended: CurvePoint | None


@keep_freed_memory()
def forgetting_curve(
    run: str | Path,
    *,
    general: str | Path | None = None,
    tolerance: float = 0.01,
    concurrent: int = CONCURRENT,
    device: str = "auto",
    cache: bool = True,
    subscribers: Sequence[Subscriber] = (),
) -> ForgettingCurve:
    """Measure the base and all kept checkpoints of a run, which need not be finished.

    Args:
        run: its directory, with held-out rows. `train.keep_checkpoints` says how many checkpoints it keeps.
        general: a text file of general text; None: as the suite `forgetting`.
        tolerance: the rise of the loss on general text that is allowed, as a share of the base's.
        concurrent: the most texts that are computed at the same time; figures do not depend on it.
        device: for the models.
        cache: whether losses and answers are kept in the user's cache, and read from it.
        subscribers: receive `progress` events (what, done, total), and `figures` events as soon as figures are known.

    Returns:
        The curve.

    Raises:
        UserError: it is no run of a model that writes text, or it has no checkpoints or no held-out rows.
    """
    directory = SubjectName.parse(str(run)).run
    if directory is None:
        raise UserError(f"{run} is not a run. A forgetting curve is of a run's checkpoints.")
    rows = EvaluationRows.of_run(directory)
    if not rows.objective.head.generates_text:
        raise UserError(f"{run} does not write text, so its loss on general text is not known.")
    subjects = _subjects(directory, rows.recipe, concurrent, device, cache)
    asked = Asked({}, Sampling(1), 0, Events(*subscribers))
    found = measure(Trial(rows, subjects, run=directory), asked, {"forgetting": _GeneralLoss(general)})
    models = {
        name: figures_of(side, found.tasks, rows.objective.head, {}, rows.objective.loss_unit) | found.suites[name]
        for name, side in found.sides.items()
    }
    result = summary(models, BASE)
    points = tuple(_point(name, differences) for name, differences in result["differences"].items())
    return ForgettingCurve(
        points, frontier(points), recommended(points, tolerance * result["models"][BASE][GENERAL]["value"])
    )


class _GeneralLoss:
    """Of the suite `forgetting`, the figure that the curve has; no answers are written for it."""

    def __init__(self, general: str | Path | None) -> None:
        self._texts = general_texts(general)

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`."""
        return {"general_loss": general_loss(self._texts, subject.scores(None, self._texts))}


def _subjects(directory: Path, recipe: Recipe, concurrent: int, device: str, keeps: bool) -> list[LocalSubject]:
    """The base and the checkpoints.

    Raises:
        UserError: there are none.
    """
    paths = sorted(path for path in (directory / CHECKPOINTS).glob("step-*") if is_checkpoint(path))
    if not paths:
        raise UserError(f"{directory} has no checkpoints. Set train.checkpoint_every and train.keep_checkpoints.")
    names = [SubjectName.parse(str(path)) for path in paths]
    opened = [
        open_subject(name, path.name, concurrent=concurrent, device=device, keeps=keeps)
        for name, path in zip(names, paths, strict=True)
    ]
    checkpoints = [subject for subject in opened if isinstance(subject, LocalSubject)]
    return [open_base(recipe, checkpoints[0], BASE, keeps), *checkpoints]


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
