"""Training as it is asked for: one run, or several in a row, each from the last one's weights, or each on other rows.

A stage is a run like any other, in a directory of its own within the chain's: for intermediate-task fine-tuning (Phang
et al. 2018), a domain before a task (Gururangan et al. 2020), an adapter grown with arriving data.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.pipeline import Pipeline
from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.models.merge import merged_model, save_merged
from tunesmith.models.model_reference import ModelReference
from tunesmith.run import CHAIN, Run, Subscriber, atomic_write, last_stage, new_directory
from tunesmith.training.one_run import resume_run, train_run


def train(
    recipe: Recipe | dict[str, Any] | str | Path,
    run: str | Path | None = None,
    overrides: Sequence[str] = (),
    subscribers: Sequence[Subscriber] = (),
) -> Run:
    """Start a run, or a chain of runs if the recipe has `stages`.

    Args:
        recipe: a `Recipe`, a dict, or a YAML file's path.
        run: the directory, which must not hold a run yet; default: a new one under `runs/`.
        overrides: `key.path=value` strings that replace fields of the recipe, or of all stages.
        subscribers: told of every event, besides metrics.jsonl.

    Returns:
        The run, the last one of a chain; `run.finished` is False if it was interrupted, and `resume` goes on.

    Raises:
        UserError: what the user can mend, in one line.
    """
    chain = Pipeline.load(recipe, overrides)
    if chain is None:
        return train_run(recipe, run, overrides, subscribers)
    what = "-".join(chain.names) if chain.folded is None else f"{chain.folded.method.kind}-folds"
    directory = new_directory(run, chain.recipes[0].base.path, what)
    with atomic_write(directory / CHAIN) as file:
        file.write(chain.to_yaml())
    try:
        return _execute(chain, directory, subscribers)
    except UserError:
        if last_stage(directory) == directory:  # the first stage was refused before anything happened
            shutil.rmtree(directory)
        raise


def resume(run: str | Path, subscribers: Sequence[Subscriber] = ()) -> Run:
    """Go on with a run or a chain from its last checkpoint, to the same weights as if nothing had stopped it.

    Raises:
        UserError: it is neither, has finished, or its data or base have changed since.
    """
    directory = Path(run).absolute()
    chain = Pipeline.load(directory / CHAIN) if (directory / CHAIN).exists() else None
    return resume_run(run, subscribers) if chain is None else _execute(chain, directory, subscribers)


def _execute(chain: Pipeline, directory: Path, subscribers: Sequence[Subscriber]) -> Run:
    """Every stage that has not finished, in order; up to the one that is interrupted."""
    places = [directory / f"{number}-{name}" for number, name in enumerate(chain.names, 1)]
    if all((place / "recipe.yaml").exists() and Run.open(place).finished for place in places):
        raise UserError(
            f"{directory} has finished; nothing is left to do. To train on from its weights, name it as base."
        )
    before: Run | None = None
    for place, recipe in zip(places, chain.recipes, strict=True):
        if not (place / "recipe.yaml").exists():
            stage = recipe if before is None or chain.folded is not None else _from_weights_of(before, recipe)
            before = train_run(stage, place, (), subscribers)
        elif not Run.open(place).finished:
            before = resume_run(place, subscribers)
        else:
            before = Run.open(place)
        if not before.finished:
            break
    assert before is not None
    return before


def _from_weights_of(before: Run, recipe: Recipe) -> Recipe:
    """The recipe with the earlier run's weights for its base: the model that it wrote; its adapter, to go on with,
    where both have the same method; or the base with the adapter merged.

    Raises:
        UserError: the adapter can neither be gone on with nor be merged.
    """
    assert before.output is not None
    earlier = Recipe.load(before.directory / "recipe.yaml")
    if before.output.name == "model":
        base = recipe.base.model_copy(update={"path": str(before.directory), "from_scratch": False, "adapter": None})
    elif (
        earlier.method == recipe.method
        and recipe.method.is_resumable
        and earlier.objective.ending == recipe.objective.ending
    ):
        base = earlier.base.model_copy(update={"adapter": before.output})
    else:
        merged = before.directory / "merged"
        if not merged.exists():
            usable = ModelReference.find(str(before.directory))
            save_merged(merged_model(usable), usable, merged)
        base = recipe.base.model_copy(update={"path": str(merged), "from_scratch": False, "adapter": None})
    return recipe.model_copy(update={"base": base})
