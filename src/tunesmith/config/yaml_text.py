"""Recipes as YAML: numbers as people write them, no key twice, errors with their line."""

import re
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (`1e-4` is one, `1_000` is not octal-like magic) and no duplicate keys."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise yaml.MarkedYAMLError(problem=f"{twice} is given twice", problem_mark=node.start_mark)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


class _Dumper(yaml.SafeDumper):
    """Writes floats so that YAML 1.1 readers see numbers too (1.0e-04, not 1e-04)."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e", 1)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers  # so that a text that reads as a number is quoted
_Dumper.add_representer(float, _represent_float)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file.

    Raises:
        UserError: there is no such file, or it is no mapping in YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe. `tunesmith init DATA` writes one from a data file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a recipe: {error}") from None
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path.name}{place}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path.name}: a recipe is a mapping with at least data.train; this is {type(values).__name__}."
        )
    return values


def set_field(values: dict[str, Any], override: str) -> None:
    """Apply `train.learning_rate=1e-4` to nested dicts in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write KEY=VALUE, for example train.learning_rate=1e-4.")
    *parents, last = key.strip().split(".")
    place = values
    for parent in parents:
        inner = place.get(parent)
        if inner is None:
            inner = {}
        elif isinstance(inner, str) and parent in ("base", "method", "objective"):
            inner = {"path" if parent == "base" else "kind": inner}
        elif not isinstance(inner, dict):
            raise UserError(f"--set {override}: {parent} has no fields.")
        place[parent] = dict(inner)
        place = place[parent]
    try:
        place[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML.") from None
    if parents == ["train"] and last in ("steps", "epochs") and place[last] is not None:
        place.pop({"steps": "epochs", "epochs": "steps"}[last], None)


def to_yaml(values: dict[str, Any]) -> str:
    """The values as YAML that `read_yaml` reads back as they are."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
    if any(mark in text for mark in "\x85\u2028\u2029"):  # line ends to YAML, written bare by PyYAML: escape them
        text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False, default_flow_style=False)
    return text
