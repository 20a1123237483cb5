"""The fields of a recipe, for editors (JSON schema) and for readers (Markdown), from the recipe's own classes.

The schema is stored, since its classes import every library that a method needs. `make schema` writes it.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, create_model
from pydantic_core import PydanticUndefined

from tunesmith.config.base import Base
from tunesmith.config.data import Data
from tunesmith.config.method import MethodConfig
from tunesmith.config.mix import MixSource
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import METHODS, OBJECTIVES, Registry, Strict, config_classes
from tunesmith.config.train import EarlyStopping, Train

STORED = Path(__file__).with_name("recipe.schema.json")


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors.

    Returns:
        The schema, with every method and objective by `kind`; those of an installed package that fail are logged and
        left out.
    """
    if any(registry.is_users(kind) for registry in (METHODS, OBJECTIVES) for kind in registry):
        return schema_of_classes()
    schema: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    return schema


def schema_of_classes() -> dict[str, Any]:
    """`recipe_schema` from the classes, ours and those of installed packages."""
    union: Any = {
        "method": _with_schema(METHODS, MethodConfig),
        "objective": _with_schema(OBJECTIVES, ObjectiveConfig),
    }
    fields: Any = {}
    for name, classes in union.items():
        description = Recipe.model_fields[name].description
        kind = classes[0]
        for other in classes[1:]:
            kind = kind | other
        fields[name] = (kind, Field(default=None, discriminator="kind", description=description))
    model: Any = create_model("Recipe", __base__=Recipe, **fields)
    schema: dict[str, Any] = model.model_json_schema()
    for name in union:  # a user's class may have any fields
        own = {"type": "object", "properties": {"kind": {"type": "string", "pattern": ":"}}, "required": ["kind"]}
        schema["properties"][name]["oneOf"] += [own, {"type": "string"}]  # `lora` is short for {kind: lora}
    schema["properties"]["base"] = {"anyOf": [{"type": "string"}, schema["properties"]["base"]]}
    data = schema["$defs"]["Data"]
    for owner, name in ((data, "train"), (data, "held_out"), (data, "replay"), (schema["$defs"]["MixSource"], "paths")):
        _may_be_one(owner["properties"], name)
    data["required"].remove("train")  # or a mix
    data["anyOf"] = [{"required": ["train"]}, {"required": ["mix"]}]
    return schema


def _may_be_one(properties: dict[str, Any], name: str) -> None:
    """A list of paths may be a single path."""
    paths = properties[name]
    listed = {key: value for key, value in paths.items() if key in ("type", "items", "anyOf")}
    properties[name] = {
        **{key: value for key, value in paths.items() if key not in ("type", "items")},
        "anyOf": [{"type": "string"}, listed],
    }


def _with_schema(registry: Registry, base: type[Strict]) -> list[type[BaseModel]]:
    """The classes of all kinds that have a JSON schema."""
    found = []
    for kind, chosen in config_classes(registry, base).items():
        with registry.left_out_if_broken(kind):
            chosen.model_json_schema()
            found.append(chosen)
    return found


def recipe_reference() -> str:
    """Every field with its default and the reason for it, as the page `docs/recipe.md`."""
    parts = [
        "# The recipe",
        "A recipe describes a run. Only `data.train` or `data.mix` is required; every other field has a default. An "
        "unknown field is an error that suggests the nearest name. `--set train.learning_rate=1e-4` sets a field from "
        "the command line. `tunesmith schema` prints the JSON schema, for editors.",
    ]
    sections: tuple[tuple[str, type[BaseModel]], ...] = (
        ("base", Base),
        ("data", Data),
        ("data.mix: {NAME: …}", MixSource),
        ("train", Train),
        ("train.early_stopping", EarlyStopping),
    )
    for title, model in sections:
        parts.append(_fields(title, model))
    for name, registry in (("method", METHODS), ("objective", OBJECTIVES)):
        parts += [_fields(f"{name}: {{kind: {kind}}}", registry.load(kind)) for kind in registry.own]
    return "\n\n".join(parts) + "\n"


def _fields(title: str, model: type[BaseModel]) -> str:
    """A heading, the docstring of the class, and a line for each field."""
    lines = [f"## `{title}`", "", " ".join((model.__doc__ or "").split()), ""]
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        default = "required" if field.default is PydanticUndefined else f"default: `{_plain(field.default)}`"
        lines.append(f"- **`{name}`** ({default}): {' '.join((field.description or '').split())}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """A default value as YAML."""
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, bool) or value is None:
        return words[value]
    return str(list(value) if isinstance(value, tuple) else value)
