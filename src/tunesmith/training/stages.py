"""Train one run, or a pipeline of runs: stages, each from an earlier one's weights, or folds, each on other rows.

A stage is an ordinary run, in its own directory inside the pipeline's. Stages serve intermediate-task fine-tuning
(Phang et al. 2018), a domain before a task (Gururangan et al. 2020), or an adapter trained further as data arrive.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.extensions import copy_code
from tunesmith.config.pipeline import Pipeline, stage_named
from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.exporting.export import export
from tunesmith.heads.head_file import described_head
from tunesmith.run import PIPELINE_FILE, Run, Subscriber, atomic_write, last_stage, new_directory
from tunesmith.run_lock import write_lock
from tunesmith.training.trainer import Trainer


def train(
    recipe: Recipe | dict[str, Any] | str | Path,
    run: str | Path | None = None,
    overrides: Sequence[str] = (),
    subscribers: Sequence[Subscriber] = (),
) -> Run:
    """Start a run, or a pipeline of runs if the recipe has `stages` or `folds`.

    Args:
        recipe: a `Recipe`, a dict, or a YAML file's path.
        run: the directory, which must not hold a run yet; default: a new one under `runs/`.
        overrides: `key.path=value` strings that replace fields of the recipe, or of all stages.
        subscribers: called with every event, in addition to metrics.jsonl.

    Returns:
        The run; for a pipeline, its last run. If it was interrupted, `run.finished` is False; `resume` continues it.

    Raises:
        UserError: an error that the user can fix, in one line.
    """
    pipeline = Pipeline.load(recipe, overrides)
    if pipeline is None:
        return Trainer(recipe, run, overrides, subscribers).fit()
    name = "-".join(pipeline.names) if pipeline.folded is None else f"{pipeline.folded.method.kind}-folds"
    with new_directory(run, pipeline.recipes[0].base.path, name) as directory:
        with atomic_write(directory / PIPELINE_FILE) as file:
            file.write(pipeline.to_yaml())
        for stage in pipeline.recipes:
            copy_code(stage.extensions.values(), stage.directory, directory)
        try:
            return _execute(pipeline, directory, subscribers)
        except UserError:
            if last_stage(directory) == directory:  # the first stage was refused before it started
                shutil.rmtree(directory)
            raise


def resume(run: str | Path, subscribers: Sequence[Subscriber] = ()) -> Run:
    """Resume a run or a pipeline from its last checkpoint, with the same final weights as without the interruption.

    Args:
        run: the directory of the run or the pipeline.
        subscribers: called with every event, in addition to metrics.jsonl.

    Returns:
        The run; for a pipeline, its last run.

    Raises:
        UserError: the directory is neither, the run has finished, its data or base have changed since, or another
            process is writing it.
    """
    directory = Path(run).absolute()
    pipeline = Pipeline.load(directory / PIPELINE_FILE) if (directory / PIPELINE_FILE).exists() else None
    if pipeline is None:
        return Trainer.resume(run, subscribers).fit()
    with write_lock(directory):  # and within, each stage locks its own
        return _execute(pipeline, directory, subscribers)


def _execute(pipeline: Pipeline, directory: Path, subscribers: Sequence[Subscriber]) -> Run:
    """Run every stage that has not finished, in order, until one is interrupted."""
    stage_directories = [directory / f"{number}-{name}" for number, name in enumerate(pipeline.names, 1)]
    if all((path / "recipe.yaml").exists() and Run.open(path).finished for path in stage_directories):
        raise UserError(f"{directory} has finished. To continue from its weights, start a new run with it as base.")
    runs: dict[str, Run] = {}
    run: Run | None = None
    for name, path, recipe in zip(pipeline.names, stage_directories, pipeline.recipes, strict=True):
        if not (path / "recipe.yaml").exists():
            run = Trainer(_with_runs(recipe, runs), path, (), subscribers).fit()
        elif not Run.open(path).finished:
            run = Trainer.resume(path, subscribers).fit()
        else:
            run = Run.open(path)
        if not run.finished:
            break
        runs[name] = run
    assert run is not None
    return run


def _with_runs(recipe: Recipe, runs: Mapping[str, Run]) -> Recipe:
    """The recipe of a stage, with the runs of the earlier ones in place of `stage:NAME`."""

    def run_of(path: str) -> str:
        name = stage_named(path)
        return path if name is None else str(runs[name].directory)

    start = stage_named(recipe.base.path)
    if start is not None:
        recipe = _from_weights_of(runs[start], recipe)
    return recipe.model_copy(update={"objective": recipe.objective.with_absolute_paths(run_of)})


def _from_weights_of(previous: Run, recipe: Recipe) -> Recipe:
    """The recipe with the previous run's weights as its base. The base is the model that the previous run saved; or the
    previous base and adapter, to be trained further, if both have the same method; or the base with the adapter merged.

    Raises:
        UserError: the adapter can neither be trained further nor merged.
    """
    assert previous.output is not None
    earlier = Recipe.load(previous.directory / "recipe.yaml")
    if previous.output.name == "model":
        base = recipe.base.model_copy(update={"path": str(previous.directory), "from_scratch": False, "adapter": None})
    elif (
        earlier.method.model_dump() == recipe.method.model_dump()
        and recipe.method.is_resumable
        and described_head(earlier.objective.head) == described_head(recipe.objective.head)
    ):
        base = earlier.base.model_copy(update={"adapter": previous.output})
    else:
        merged = previous.directory / "merged"
        if not merged.exists():
            export(previous.directory, merged, "hf")
        base = recipe.base.model_copy(update={"path": str(merged), "from_scratch": False, "adapter": None})
    return recipe.model_copy(update={"base": base})
