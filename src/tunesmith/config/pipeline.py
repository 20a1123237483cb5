"""A recipe of several runs: stages, where each starts from the previous one's weights unless it names another base; or
folds, each from the base.

`stage:NAME` is the run of an earlier stage wherever an objective names a model, such as a reward model, and as a base.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import Recipe
from tunesmith.config.yaml_text import read_yaml, set_field, to_yaml
from tunesmith.errors import UserError

SECTIONS = ("base", "data", "method", "objective", "train")

STAGE = "stage:"
"""How the run of an earlier stage is named."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Runs by name, in order.

    Attributes:
        names: one for each run.
        recipes: one for each run; the base of a stage that starts from another one's weights is `stage:NAME`.
        folded: the recipe that the folds come from; None for stages.
    """

    names: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    folded: Recipe | None = None

    @classmethod
    def load(cls, source: Recipe | dict[str, Any] | str | Path, overrides: Sequence[str] = ()) -> "Pipeline | None":
        """The pipeline that a file, a dict or a recipe describes; None if it describes a single run.

        `stages` is a list of recipes, each with a `name`. A section beside `stages` applies to every stage that does
        not have that section itself, except that only the first one starts from that `base`. Overrides apply to all
        stages.

        Raises:
            UserError: a stage or a field is wrong; the message names it.
        """
        if isinstance(source, Recipe):
            return cls._of_folds(Recipe.load(source, list(overrides)))
        values = source if isinstance(source, dict) else read_yaml(Path(source))
        where = "recipe" if isinstance(source, dict) else Path(source).name
        if "stages" not in values:
            recipe = Recipe.load(source, list(overrides))
            _check_stages_named(recipe, {}, where)
            return cls._of_folds(recipe)
        directory = Path.cwd() if isinstance(source, dict) else Path(source).parent.resolve()
        stages = values["stages"]
        unknown = sorted(set(values) - {"stages", *SECTIONS})
        if unknown:
            raise UserError(f"{where}: {unknown[0]} is not a field beside stages. Known: {', '.join(SECTIONS)}.")
        if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
            raise UserError(f"{where}: stages must be a list of recipes, each with a name.")
        common = {key: value for key, value in values.items() if key != "stages"}
        names: list[str] = []
        recipes: list[Recipe] = []
        for number, stage in enumerate(stages, 1):
            name = str(stage.get("name") or f"stage{number}")
            if not re.fullmatch(r"[\w.-]+", name) or name in names:
                raise UserError(
                    f"{where}: stage {number}: name {name!r} is taken, or is not of letters, digits, ., - and _"
                )
            if (stage.get("data") or common.get("data") or {}).get("folds"):
                raise UserError(f"{where}: stage {name}: data.folds needs a recipe without stages. Remove folds.")
            merged = {**common, **{key: value for key, value in stage.items() if key != "name"}}
            for override in overrides:
                set_field(merged, override)
            start = _path_of(stage["base"]) if "base" in stage else f"{STAGE}{names[-1]}" if names else ""
            if start.startswith(STAGE):
                merged["base"] = {**_fields_of(common.get("base")), **_fields_of(merged.get("base")), "path": start}
            recipe = Recipe.from_values(merged, f"{where}: stage {name}", directory)
            _check_stages_named(recipe, dict(zip(names, recipes, strict=True)), f"{where}: stage {name}")
            names.append(name)
            recipes.append(recipe)
        return cls(tuple(names), tuple(recipes))

    @classmethod
    def _of_folds(cls, recipe: Recipe) -> "Pipeline | None":
        """One run for each held-out part, and one on all rows; None without folds."""
        if recipe.data.folds is None or recipe.data.fold is not None:
            return None
        numbers = range(1, recipe.data.folds + 1)
        parts = [recipe.model_copy(update={"data": recipe.data.model_copy(update={"fold": n})}) for n in numbers]
        return cls((*(f"fold{number}" for number in numbers), "whole"), (*parts, recipe), recipe)

    def to_yaml(self) -> str:
        """The pipeline as YAML that `load` reads back."""
        if self.folded is not None:
            return to_yaml(_values(self.folded))
        pairs = zip(self.names, self.recipes, strict=True)
        return to_yaml({"stages": [{"name": name, **_values(recipe)} for name, recipe in pairs]})


def stage_named(path: str) -> str | None:
    """The name of the stage whose run a path stands for; None if it is a path.

    Args:
        path: of a model.
    """
    return path.removeprefix(STAGE) if path.startswith(STAGE) else None


def _check_stages_named(recipe: Recipe, earlier: dict[str, Recipe], where: str) -> None:
    """Check every `stage:NAME` of a recipe, and that the stage that it starts from can be trained so.

    Raises:
        UserError: there is no such stage before it; or its model writes no text, and this one's objective needs that.
    """

    def known(path: str) -> str:
        name = stage_named(path)
        if name is not None and name not in earlier:
            before = ", ".join(f"{STAGE}{each}" for each in earlier) or "none"
            raise UserError(f"{where}: {path} is no earlier stage. Known: {before}.")
        return path

    recipe.objective.with_absolute_paths(known)
    start = stage_named(known(recipe.base.path))
    if start is None:
        return
    own, other = recipe.objective, earlier[start].objective
    if own.head.generates_text and not other.head.generates_text:
        raise UserError(
            f"{where}: {own.kind} trains a model that writes text, and stage {start} ends in a {other.kind} model. "
            "Name another base for it: a model, or stage:NAME of a stage whose model writes text."
        )


def _path_of(base: Any) -> str:
    return str(_fields_of(base).get("path", ""))


def _fields_of(base: Any) -> dict[str, Any]:
    """The fields of a `base` section, which may be a path alone."""
    return dict(base) if isinstance(base, dict) else {} if base is None else {"path": base}


def _values(recipe: Recipe) -> dict[str, Any]:
    """All fields, except a `max_length` that the recipe leaves to the base."""
    values = recipe.model_dump(mode="json")
    if "max_length" not in recipe.data.model_fields_set:
        del values["data"]["max_length"]
    return values
