"""Recipes as YAML: numbers as people write them, no duplicate keys, errors with their line."""

import re
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import UserError


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does (`1e-4` is a number), and refuses duplicate keys."""


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
    duplicate = next((key for key in keys if keys.count(key) > 1), None)
    if duplicate is not None:
        raise yaml.MarkedYAMLError(problem=f"{duplicate} is given twice", problem_mark=node.start_mark)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


class _Dumper(yaml.SafeDumper):
    """Writes floats so that YAML 1.1 readers read them as numbers too (1.0e-04, not 1e-04)."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e", 1)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers  # so that text that looks like a number is quoted
_Dumper.add_representer(float, _represent_float)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in the file.

    Raises:
        UserError: the file does not exist, or is not a YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe. `tunesmith init DATA` writes one from a data file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a recipe: {error}") from None
    values = parse_yaml(text, path.name)
    if not isinstance(values, dict):
        raise UserError(
            f"{path.name}: a recipe is a mapping with at least data.train; this is {type(values).__name__}."
        )
    return values


def parse_yaml(text: str, name: str) -> Any:
    """Read YAML.

    Args:
        text: of the file.
        name: of the file, for messages.

    Returns:
        Its content.

    Raises:
        UserError: it is not valid YAML; the message names the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{name}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None


def set_field(values: dict[str, Any], override: str) -> None:
    """Apply `train.learning_rate=1e-4` to nested dicts in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write KEY=VALUE, for example train.learning_rate=1e-4.")
    *parents, last = key.strip().split(".")
    section = values
    for parent in parents:
        inner = section.get(parent)
        if inner is None:
            inner = {}
        elif isinstance(inner, str) and parent in ("base", "method", "objective"):
            inner = {"path" if parent == "base" else "kind": inner}
        elif not isinstance(inner, dict):
            raise UserError(f"--set {override}: {parent} has no fields.")
        section[parent] = dict(inner)
        section = section[parent]
    try:
        section[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML.") from None
    if parents == ["train"] and last in ("steps", "epochs") and section[last] is not None:
        section.pop({"steps": "epochs", "epochs": "steps"}[last], None)


def to_yaml(values: dict[str, Any]) -> str:
    """The values as YAML that `read_yaml` reads back unchanged."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
    if any(
        mark in text for mark in "\x85\u2028\u2029"
    ):  # PyYAML writes them unescaped, and YAML reads them as line ends
        text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False, default_flow_style=False)
    return text
