"""The models of an evaluation, and the rows that they are evaluated on, from the names on a command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.evaluation.measuring import Opened, Trial
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.evaluation.subjects import SubjectName, column_names, open_base, open_subject
from tunesmith.run import Run, Subscriber
from tunesmith.subjects.local_subject import LocalSubject

BASE, TUNED = "base", "tuned"
"""The columns if a run is evaluated alone."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is evaluated.

    Attributes:
        names: of the models.
        paths: files of rows; None: the held-out rows of the first run among the models.
        count: how many rows are answered; None: all.
        has_suites: whether suites are measured, so that no rows are needed.
    """

    names: Sequence[SubjectName]
    paths: Sequence[str] | None
    count: int | None
    has_suites: bool


def names_of(models: str | Path | Sequence[str | Path]) -> list[SubjectName]:
    """The names of models.

    Args:
        models: one name or several.

    Returns:
        As parsed.

    Raises:
        UserError: there is none, or one is no name.
    """
    names = [SubjectName.parse(str(name)) for name in ([models] if isinstance(models, str | Path) else models)]
    if not names:
        raise UserError("There is no model to evaluate. Name one.")
    return names


def run_alone(models: str | Path | Sequence[str | Path]) -> Run | None:
    """The run that is compared with its own base.

    Args:
        models: one name or several.

    Returns:
        The run, if the only name is one; else None.

    Raises:
        UserError: it has not finished.
    """
    name, *others = names_of(models)
    if others or name.storage or name.checkpoint is not None or name.run is None:
        return None
    run = Run.open(name.run)
    if not run.finished:
        raise UserError(f"{name.text} has not finished. Resume it: tunesmith train --resume {name.text}")
    return run


def extensions_of(names: Sequence[SubjectName]) -> dict[str, str]:
    """The users' code of all runs.

    Args:
        names: of the models.

    Returns:
        Files by what they are for, as `Recipe.extensions` has them.
    """
    recipes = (Recipe.load(name.run / "recipe.yaml") for name in names if name.run is not None)
    return {key: path for recipe in recipes for key, path in recipe.extensions.items()}


class Opening:
    """Opens models with the same options.

    Args:
        concurrent: the most answers that are computed at the same time.
        device: of models in this process.
        keeps: whether results are kept in the user's cache.
        subscribers: receive `progress` while a GGUF file is written.
    """

    def __init__(self, concurrent: int, device: str, keeps: bool, subscribers: Sequence[Subscriber] = ()) -> None:
        self._concurrent, self._device, self._keeps, self._subscribers = concurrent, device, keeps, subscribers

    def models(self, asked: Wanted) -> Trial:
        """Models side by side.

        Args:
            asked: what is evaluated.

        Returns:
            The models on the rows.

        Raises:
            UserError: a model does not exist or has not finished, or there are no rows.
        """
        columns = column_names(asked.names)
        subjects = [self._open(name, column) for name, column in zip(asked.names, columns, strict=True)]
        return Trial(_rows_of(asked), subjects, run=_first_run(asked.names))

    def forms(self, asked: Wanted, storages: Sequence[str]) -> Trial:
        """One model in several forms; those that cannot be made here are left out.

        Args:
            asked: what is evaluated: one model.
            storages: what may follow `@` in a name. The first is the one that the others are compared with.

        Returns:
            The forms on the rows.

        Raises:
            UserError: it is not one model of this machine, or there are no rows.
        """
        name, *others = asked.names
        if others or name.storage or name.is_served:
            which = ", ".join(each.text for each in asked.names)
            raise UserError(f"The forms of one model of this machine are compared, not {which}. Name it without @.")
        names = [SubjectName.parse(f"{name.text}@{storage}") for storage in storages]
        subjects, left_out = [], {}
        for each, column in zip(names, column_names(names), strict=True):
            try:
                subjects.append(self._open(each, column))
            except UserError as error:
                if not subjects:
                    raise
                left_out[column] = str(error)
        return Trial(_rows_of(asked), subjects, run=name.run, left_out=left_out, are_forms=True)

    def run(self, run: Run, asked: Wanted) -> list[Trial]:
        """A run and its base. With `data.folds`, every row is evaluated with the model that was not trained on it, and
        the suites are measured on the last one, which was trained on all rows.

        Args:
            run: finished.
            asked: what is evaluated.

        Returns:
            One for each fold, if there are folds and no other rows.

        Raises:
            UserError: the rows cannot be read.
        """
        recipe = Recipe.load(run.directory / "recipe.yaml")
        if asked.count == 0 and asked.has_suites:
            return [Trial(None, self._pair(run.directory), run=run.directory)]
        if asked.paths is not None:
            rows = EvaluationRows.of_files(asked.paths, run.directory)
            return [Trial(rows, self._pair(run.directory), run=run.directory)]
        if recipe.data.folds is None or recipe.data.fold is not None:
            return [Trial(EvaluationRows.of_run(run.directory), self._pair(run.directory), run=run.directory)]
        folds = [
            Trial(EvaluationRows.of_run(part), self._pair(part), fold) for fold, part in enumerate(run.stages[:-1], 1)
        ]
        return [*folds, Trial(None, self._pair(run.directory), run=run.directory)] if asked.has_suites else folds

    def _pair(self, directory: Path) -> list[Opened]:
        """The base and the run."""
        tuned = self._open(SubjectName.parse(str(directory)), TUNED)
        assert isinstance(tuned, LocalSubject)
        recipe = Recipe.load(directory / "recipe.yaml")
        return [open_base(recipe, tuned, BASE, self._keeps), tuned]

    def _open(self, name: SubjectName, column: str) -> Opened:
        return open_subject(
            name, column, concurrent=self._concurrent, device=self._device, keeps=self._keeps,
            subscribers=self._subscribers,
        )  # fmt: skip


def _first_run(names: Sequence[SubjectName]) -> Path | None:
    return next((name.run for name in names if name.run is not None), None)


def _rows_of(asked: Wanted) -> EvaluationRows | None:
    """What models are evaluated on; None if only suites are asked for.

    Raises:
        UserError: there are no rows.
    """
    run = _first_run(asked.names)
    if asked.count == 0 and asked.has_suites:
        return None
    if asked.paths is not None:
        return EvaluationRows.of_files(asked.paths, run)
    if run is None:
        if asked.has_suites:
            return None
        raise UserError(
            "There are no rows to evaluate on. Give --data FILE, or name a run, whose held-out rows are used."
        )
    rows = EvaluationRows.of_run(run)
    if rows.recipe.data.folds is not None and rows.recipe.data.fold is None:
        raise UserError(f"{run} holds every row out once (data.folds). Evaluate it alone, or give --data FILE.")
    return rows
