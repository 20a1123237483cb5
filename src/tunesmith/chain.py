"""A recipe of several stages: each a recipe of its own, which goes on from the last one's weights."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.recipe import Recipe
from tunesmith.recipe_yaml import read_yaml, set_field, to_yaml

SECTIONS = ("base", "data", "method", "objective", "train")


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages by name, in order."""

    names: tuple[str, ...]
    recipes: tuple[Recipe, ...]

    @classmethod
    def load(cls, source: dict[str, Any] | str | Path, overrides: Sequence[str] = ()) -> "Chain | None":
        """The chain that a file or dict describes; None if it is a single recipe.

        `stages` is a list of recipes with a `name` each; what stands beside it holds for every stage that does not say
        otherwise, section by section. Overrides are for all stages.

        Raises:
            UserError: naming the stage and the field.
        """
        values = source if isinstance(source, dict) else read_yaml(Path(source))
        if "stages" not in values:
            return None
        where = "recipe" if isinstance(source, dict) else Path(source).name
        folder = Path.cwd() if isinstance(source, dict) else Path(source).parent.resolve()
        stages = values["stages"]
        unknown = sorted(set(values) - {"stages", *SECTIONS})
        if unknown:
            raise UserError(f"{where}: {unknown[0]} is not a field beside stages. Known: {', '.join(SECTIONS)}.")
        if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
            raise UserError(f"{where}: stages is a list of recipes, each with a name.")
        common = {key: value for key, value in values.items() if key != "stages"}
        names, recipes = [], []
        for number, stage in enumerate(stages, 1):
            name = str(stage.get("name") or f"stage{number}")
            if not re.fullmatch(r"[\w.-]+", name) or name in names:
                raise UserError(f"{where}: stage {number}: name {name!r} is taken, or not of letters, digits, - and _.")
            if number > 1 and "base" in stage:
                raise UserError(f"{where}: stage {name}: its base is what the stage before it leaves. Remove base.")
            merged = {**common, **{key: value for key, value in stage.items() if key != "name"}}
            for override in overrides:
                set_field(merged, override)
            names.append(name)
            recipes.append(Recipe.from_values(merged, f"{where}: stage {name}", folder))
        return cls(tuple(names), tuple(recipes))

    def to_yaml(self) -> str:
        """As YAML that `load` reads back."""
        pairs = zip(self.names, self.recipes, strict=True)
        stages = [{"name": name, **recipe.model_dump(mode="json")} for name, recipe in pairs]
        for stage in stages[1:]:
            del stage["base"]
        return to_yaml({"base": stages[0].pop("base"), "stages": stages})
