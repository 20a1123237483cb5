"""Metrics of an answer that should be a JSON object or array, as tool calls and extracted fields are."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.metrics.metric import Metric

Leaf = tuple[tuple[str | int, ...], str, Any]
"""The path to a value (keys and positions), the value's JSON type, and the value; None for an empty container."""

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


def parsed_json(answer: str) -> dict[str, Any] | list[Any] | None:
    """The JSON object or array (RFC 8259) that an answer consists of.

    Args:
        answer: the text. A Markdown fence (```json) around it is stripped, as clients do; other text around it is not.

    Returns:
        The object or array; None if the text is neither. Strings, numbers, true, false and null alone are neither.
    """
    fenced = _FENCE.fullmatch(answer.strip())
    try:
        value = json.loads(fenced[1] if fenced else answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or array, as `parsed_json` reads it.

    Args:
        text: any text.

    Returns:
        True if it is.
    """
    return parsed_json(text) is not None


def valid_json(answer: str, expected: str) -> float:
    """1 if the answer is a JSON object or array.

    Args:
        answer: the text to score.
        expected: not used; every metric has it.

    Returns:
        0 or 1.
    """
    return float(is_json(answer))


def field_f1(answer: str, expected: str) -> float:
    """F1 of the leaves of the answer and of the expected answer, 2 · common / (answer + expected).

    A leaf is a path and its value: `{"a": {"b": [1, 2]}}` has a.b.0 = 1 and a.b.1 = 2. Keys may be in any order,
    elements of an array may not. An empty object or array is a leaf.

    Args:
        answer: the text to score.
        expected: JSON.

    Returns:
        From 0 to 1; 0 if either is not a JSON object or array.
    """
    found, wanted = parsed_json(answer), parsed_json(expected)
    if found is None or wanted is None:
        return 0.0
    ours, theirs = _leaves(found), _leaves(wanted)
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


def _leaves(value: Any) -> set[Leaf]:
    """All leaves. Without recursion: an answer may be nested deeply."""
    leaves: set[Leaf] = set()
    remaining: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while remaining:
        path, value = remaining.pop()
        if isinstance(value, dict | list):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            remaining += [((*path, step), each) for step, each in inner]
            leaves |= set() if value else {(path, type(value).__name__, None)}
        else:
            leaves.add((path, "number" if type(value) in (int, float) else type(value).__name__, value))
    return leaves


def _refuse(constant: str) -> Any:
    """Python's parser accepts NaN and Infinity, and JSON does not have them."""
    raise ValueError(constant)


def valid_by(schema: Any, where: str) -> Callable[[str], bool]:
    """What checks texts against a schema.

    Args:
        schema: a JSON schema, any draft from 3 on; `$schema` in it says which, and 2020-12 is the default.
        where: it is, for errors.

    Returns:
        A function from a text to whether it is a JSON object or array, as `parsed_json` reads it, and valid.

    Raises:
        UserError: it is not a schema.
    """
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        checker = validator_for(schema)
        checker.check_schema(schema)
    except SchemaError as error:
        raise UserError(f"{where} is not a valid JSON schema: {error.message} (at {error.json_path}).") from None
    valid = checker(schema).is_valid

    def check(text: str) -> bool:
        value = parsed_json(text)
        return value is not None and valid(value)

    return check


def schema_in(path: Path, needed: str) -> Any:
    """The JSON in a file.

    Args:
        path: of the file.
        needed: what needs it to be a schema, for the error.

    Raises:
        UserError: it cannot be read as JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}. {needed} needs a JSON schema.") from None


def schema_metric(file: str, directory: Path) -> Metric:
    """The share of answers that are JSON and valid against a schema.

    Args:
        file: of a JSON schema.
        directory: from which the file's path starts.

    Returns:
        The metric; its score is 0 or 1.

    Raises:
        UserError: the file cannot be read, or is not a schema.
    """
    path = directory / file
    valid = valid_by(schema_in(path, "--metric schema:FILE"), str(path))

    def score(answer: str, expected: str) -> float:
        return float(valid(answer))

    return Metric(f"valid by {path.name}", f"answers that are JSON, and valid against the schema {path.name}", score)


JSON_METRICS = {
    "valid_json": Metric("valid JSON", "answers that are a JSON object or array", valid_json, is_json),
    "fields": Metric(
        "fields right", "fields of the expected JSON with the right value in the right place (F1)", field_f1, is_json
    ),
}
"""Metrics of JSON by name."""
