"""What is checked: files as they are, or the rows of a recipe as it reads and renders them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.checks.inputs import Input, inputs

if TYPE_CHECKING:
    from tunesmith.checks.rendering import Renders
    from tunesmith.config.recipe import Recipe

OF_RECIPES = ("unusable", "over_max_length", "unknown_tokens")
"""Checks that need a tokenizer and an objective."""


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        files: whose rows are checked.
        others: held-out files and benchmarks that they are compared with.
        key: what the results depend on beside the files and checks.
        renders: how rows become tokens; None if no recipe says it.
    """

    files: tuple[Input, ...]
    others: tuple[Input, ...]
    key: Any = None
    renders: "Renders | None" = None


def of_files(paths: Sequence[str | Path], against: Sequence[str | Path]) -> Subject:
    """Files as they are; each has a format of its own.

    Raises:
        UserError: a path does not exist, or its rows are in no known format.
    """
    files = inputs([str(path) for path in paths], Path.cwd())
    return Subject(tuple(files), _others(against))


def of_recipe(recipe: "Recipe", against: Sequence[str | Path]) -> Subject:
    """The rows that a recipe trains on, compared with those that it holds out.

    Raises:
        UserError: as `of_files`, or the base's tokenizer cannot be loaded.
    """
    from tunesmith.checks.rendering import rendering_of
    from tunesmith.config import extensions
    from tunesmith.data.prepare import resolve

    recipe.import_code()
    recipe = resolve(recipe)
    data, formats = recipe.data, recipe.objective.formats
    files: list[Input] = []
    for source in data.sources.values():
        own = data.of(source)
        share = data.held_out if source.held_out and data.folds is None and isinstance(data.held_out, float) else 0.0
        found = inputs(source.paths, Path.cwd(), own.format, formats, own.columns)
        files += [replace(each, held_out=share) for each in found]
    held_out: list[Input] = []
    if isinstance(data.held_out, list):
        held_out = inputs(data.held_out, Path.cwd(), data.format, formats, data.columns)
    renders, tokenizer = rendering_of(recipe)
    key = [
        recipe.data.model_dump(mode="json", exclude={"cache", "checks", "pack", "order"}),
        recipe.objective.model_dump(mode="json"),
        tokenizer,
        extensions.fingerprint(recipe.extensions.values(), recipe.directory),
    ]
    others = (*(replace(each, is_other=True) for each in held_out), *_others(against))
    return Subject(tuple(files), others, key, renders)


def _others(paths: Sequence[str | Path]) -> tuple[Input, ...]:
    found = inputs([str(path) for path in paths], Path.cwd()) if paths else []
    return tuple(replace(each, is_other=True) for each in found)
