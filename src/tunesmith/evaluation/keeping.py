"""What a run forgot, by checkpoint, and what would have kept it: sections of an evaluation of a run alone."""

from dataclasses import dataclass
from typing import Any

from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.evaluation.forgetting_curve import CurveOptions, checkpoints_of, forgetting_curve, writing_run
from tunesmith.evaluation.how_to_keep import how_to_keep
from tunesmith.run import Run


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which of these sections an evaluation has.

    Attributes:
        checkpoints: whether the kept checkpoints are measured.
        reruns: whether short reruns are trained and measured.
        steps: of a rerun, at most; None: as `how_to_keep`.
        options: how both are measured.
    """

    checkpoints: bool
    reruns: bool
    steps: int | None
    options: CurveOptions

    @property
    def is_asked_for(self) -> bool:
        """Whether there is any section."""
        return self.checkpoints or self.reruns

    def budgets(self, seconds: float | None) -> tuple[float | None, float | None]:
        """How a time is divided: half of it is for the reruns, if there are any.

        Args:
            seconds: for everything; None: as much as it takes.

        Returns:
            For the evaluation, and for the reruns.
        """
        return (seconds / 2, seconds / 2) if self.reruns and seconds is not None else (seconds, None)

    def refuse(self, run: Run | None) -> None:
        """Refuse what has no such sections, before anything is computed.

        Args:
            run: that is evaluated alone; None: something else is evaluated.

        Raises:
            UserError: it is no run of a model that writes text, or has no checkpoints or no rows of its own, or the
                tolerance is no share.
        """
        if not self.is_asked_for:
            return
        if run is None:
            raise UserError(
                "--checkpoints and --how-to-keep are for a run beside its base. Name one run and no other model, and "
                "measure no --suite quantization."
            )
        tolerance = self.options.tolerance
        if not 0 <= tolerance < 1:
            raise UserError(f"--tolerance {tolerance:g} is not a share of the loss. Use 0.01 for 1 %, for example.")
        directory = writing_run(run.directory)
        if self.options.data is None and Recipe.load(directory / "recipe.yaml").data.folds is not None:
            raise UserError(
                f"{directory} is trained on all rows (data.folds), and gains are of others. Give --data FILE."
            )
        if self.checkpoints:
            checkpoints_of(directory)

    def sections(self, run: Run, seconds: float | None) -> dict[str, Any]:
        """Measure what is asked for.

        Args:
            run: that is evaluated alone.
            seconds: for the reruns; None: as much as their steps take.

        Returns:
            `checkpoints` and `how_to_keep`, as `ForgettingCurve.described`; None for what is not asked for.

        Raises:
            UserError: a model cannot be loaded, or a rerun cannot be trained.
        """
        curve = forgetting_curve(run.directory, self.options) if self.checkpoints else None
        reruns = how_to_keep(run.directory, self.options, steps=self.steps, seconds=seconds) if self.reruns else None
        return {
            "checkpoints": None if curve is None else curve.described(),
            "how_to_keep": None if reruns is None else reruns.described(),
        }
