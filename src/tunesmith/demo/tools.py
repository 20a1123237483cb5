"""Tool definitions from Python functions: rows from the functions of this installation, and metrics of answers.

A definition is the inner "function" object of OpenAI's function calling, with the keys and their order of
`transformers.utils.get_json_schema`. Entire packages are held out, by the hash of their name.

    python -m tunesmith.demo.tools --directory DIRECTORY
"""

import argparse
import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

from tunesmith.demo.docstrings import split
from tunesmith.demo.functions import (
    Function,
    FunctionNode,
    Package,
    Parameter,
    function,
    functions,
    number,
    packages,
    parse_function,
)
from tunesmith.demo.json_types import (
    Schema,
    annotated_type,
    default_type,
    documented_type,
    is_json_scalar,
    literal,
)
from tunesmith.errors import UserError
from tunesmith.metrics import METRICS, Metric
from tunesmith.metrics.json_text import field_f1, parsed_json
from tunesmith.run import atomic_write

HELD_OUT_SHARE = 0.2  # of packages; about a fifth of the rows
ROWS_PER_PACKAGE = 150  # so that no package dominates
LONGEST_ROW = 1000  # characters of question and answer: about 250 tokens of a GPT-2-like tokenizer
MANY_PARAMETERS = 3  # rows with this number and more are one kind when rows are mixed
LONGEST_DESCRIPTION = 20  # words

QUESTION = "Write the JSON tool definition of this Python function.\n\n```python\n{}\n```"

JsonType = Literal["string", "integer", "number", "boolean", "array", "object", "null"]


JsonScalar = bool | int | float | str

_strict = with_config(ConfigDict(extra="forbid", strict=True))


@_strict
class Property(TypedDict, total=False):
    """The JSON Schema of a parameter, or of a part of it. The fields are in the order of the keys."""

    type: JsonType | Annotated[list[JsonType], Field(min_length=1)]
    enum: Annotated[list[JsonScalar | None], Field(min_length=1)]
    items: "Property"
    prefixItems: list["Property"]
    additionalProperties: "Property | bool"
    anyOf: Annotated[list["Property"], Field(min_length=1)]
    nullable: bool
    description: Annotated[str, Field(min_length=1)]
    default: Any


@_strict
class Parameters(TypedDict):
    """The parameters of a tool, as the properties of an object. Without `required`, none is."""

    type: Literal["object"]
    properties: dict[str, Property]
    required: NotRequired[list[str]]


@_strict
class ToolDefinition(TypedDict):
    """What a model is shown of a function that it may call."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: NotRequired[Annotated[str, Field(min_length=1)]]
    parameters: Parameters


_TOOL_DEFINITION = TypeAdapter(ToolDefinition)


@dataclass(frozen=True, slots=True)
class Row:
    """A function without its body, and its tool definition.

    Attributes:
        question: contains the signature, and the docstring's description and parameters.
        answer: the definition as JSON on one line.
        module: the function's module: `json.decoder`.
        name: with the module: `json.decoder.decode`.
    """

    question: str
    answer: str
    module: str
    name: str


def definition(source: str) -> ToolDefinition:
    """The tool definition of a function.

    A parameter's type is that of its annotation, else of the docstring, else of its default value. If none is known,
    it has no type, which allows any value. A parameter with a default value is not required; the value is given if it
    is a JSON scalar. self, cls, *args and **kwargs are left out. Descriptions are the first sentences.

    Args:
        source: one function, with or without body: `def f(x: int)` is enough.

    Raises:
        UserError: the text is not one function, or its name cannot be a tool's.
    """
    return _definition(parse_function(source))


def as_text(tool: ToolDefinition) -> str:
    """JSON on one line, which takes fewer tokens than indented JSON."""
    return json.dumps(tool, ensure_ascii=False)


def question(source: str) -> str:
    """The prompt for a function: its signature, and the docstring's description and parameters.

    Args:
        source: one function, with or without body.

    Raises:
        UserError: the text is not one function.
    """
    return _question(parse_function(source))


def _definition(of: Function) -> ToolDefinition:
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {parameter.name: _property(parameter) for parameter in of.parameters},
    }
    if required := [parameter.name for parameter in of.parameters if parameter.default is None]:
        parameters["required"] = required
    description = {"description": of.summary} if of.summary else {}
    try:
        return _TOOL_DEFINITION.validate_python({"name": of.name, **description, "parameters": parameters})
    except ValidationError:
        raise UserError(
            f"{of.name} cannot be the name of a tool: use up to 64 letters, digits and underscores."
        ) from None


def _property(parameter: Parameter) -> Schema:
    schema = dict(_type(parameter) or {})
    if parameter.description:
        schema["description"] = parameter.description
    if is_json_scalar(value := literal(parameter.default)):
        schema["default"] = value
    return schema


def _type(parameter: Parameter) -> Schema | None:
    """None if it is unknown, or if JSON has no such type.

    The docstring goes before the default value, because it knows more: that `tol=1` is a float, or all the choices.
    """
    if parameter.annotation is not None:
        return annotated_type(parameter.annotation)
    return documented_type(parameter.documented_type) or default_type(parameter.default)


def _question(of: Function) -> str:
    if not of.docstring:
        return QUESTION.format(f"{of.signature}: ...")
    docstring = of.docstring + ("\n" if "\n" in of.docstring else "")
    return QUESTION.format(f"{of.signature}:\n" + textwrap.indent(f'"""{docstring}"""', "    "))


def rows(found: Iterable[Package] | None = None, left_out: Counter[str] | None = None) -> list[Row]:
    """Rows from the functions of packages, in a fixed order that mixes the packages.

    Every parameter has a JSON type and a description. Functions with *args or **kwargs are among them; their
    definitions leave these out.

    Args:
        found: packages. Default: the standard library and the installed packages.
        left_out: if given, counts the functions that gave no row, by reason.
    """
    reasons = left_out if left_out is not None else Counter()
    kept: dict[str, Row] = {}
    for package in packages() if found is None else found:
        of_package = 0
        for module, name, node in functions(package):
            row, reason = _row(module, name, node)
            if row is None:
                reasons[reason] += 1
            elif row.question in kept:
                reasons["the same function again"] += 1
            else:
                kept[row.question] = row
                of_package += 1
            if of_package == ROWS_PER_PACKAGE:
                break
    return sorted(kept.values(), key=lambda row: number(row.question))


def _row(module: str, name: str, node: FunctionNode) -> tuple[Row | None, str]:
    """A row, or None with the reason."""
    of = function(node)
    if not of.parameters:
        return None, "without parameters"
    if not all(map(_type, of.parameters)):
        return None, "a parameter without a JSON type"
    descriptions = [of.summary, *(parameter.description for parameter in of.parameters)]
    if not all(descriptions):
        return None, "without a description, or with a parameter that has none"
    if not all(map(_is_plain, descriptions)):
        return None, "a description that is not one plain sentence"
    try:
        row = Row(_question(of), as_text(_definition(of)), module, name)
    except UserError:
        return None, "a name that cannot be a tool's"
    if len(row.question) + len(row.answer) > LONGEST_ROW:
        return None, f"more than {LONGEST_ROW} characters"
    return row, ""


def _mixed(rows: Iterable[Row]) -> list[Row]:
    """The rows, with one, two and more parameters in turn while there are such: most functions have a single one."""
    kinds: list[list[Row]] = [[] for _ in range(MANY_PARAMETERS)]
    for row in rows:
        count = len(json.loads(row.answer)["parameters"]["properties"])
        kinds[min(count, MANY_PARAMETERS) - 1].append(row)
    return [row for turn in zip_longest(*kinds) for row in turn if row is not None]


_NOT_PLAIN = re.compile(
    r"[\\{}|<>=_]{2}|\\|https?:|>>>|[:,;(]$|^\W|deprecated|^(?:see|todo|xxx|same as|alias|refer to|internal)\b", re.I
)


def _is_plain(text: str) -> bool:
    """Whether a description is a complete sentence without markup."""
    is_short = len(text.split()) <= LONGEST_DESCRIPTION
    is_balanced = all(text.count(opening) == text.count(closing) for opening, closing in ("()", "[]", "{}"))
    return is_short and is_balanced and text.isascii() and text.count('"') % 2 == 0 and not _NOT_PLAIN.search(text)


def write_rows(
    directory: str | Path,
    share: float = HELD_OUT_SHARE,
    found: Iterable[Package] | None = None,
    most_held_out: int | None = None,
    most_train: int | None = None,
) -> tuple[Path, Path, dict[str, int]]:
    """Write `train.jsonl` and `held_out.jsonl` into `directory`.

    Args:
        directory: created if missing.
        share: of packages that are held out.
        found: packages. Default: the standard library and the installed packages.
        most_held_out: how many held-out rows to write, which are a fair mixture of the packages. Default: all.
        most_train: how many training rows to write, likewise. Default: all.

    Returns:
        Both paths, and counts: functions, rows, train, held_out, train_packages, held_out_packages, held_out_removed
        (training has the same answer), train_not_written, held_out_not_written, and the functions that were left out,
        by reason.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    left_out: Counter[str] = Counter()
    kept = rows(found, left_out)
    all_train, all_held_out, removed = split(kept, share)
    train, held_out = _mixed(all_train)[:most_train], _mixed(all_held_out)[:most_held_out]
    counts = {
        "functions": len(kept) + left_out.total(),
        "rows": len(kept),
        "train": len(train),
        "held_out": len(held_out),
        "train_packages": len({row.module.partition(".")[0] for row in train}),
        "held_out_packages": len({row.module.partition(".")[0] for row in held_out}),
        "held_out_removed": removed,
        "train_not_written": len(all_train) - len(train),
        "held_out_not_written": len(all_held_out) - len(held_out),
        **{f"left out: {reason}": count for reason, count in sorted(left_out.items())},
    }
    files = (directory / "train.jsonl", directory / "held_out.jsonl")
    for file, side in zip(files, (train, held_out), strict=True):
        with atomic_write(file) as out:
            out.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in side)
    return files[0], files[1], counts


def valid_definition(answer: str, expected: str) -> float:
    """1 if the answer is a tool definition: known keys, JSON types, and required parameters that exist."""
    try:
        parameters = _TOOL_DEFINITION.validate_python(parsed_json(answer))["parameters"]
    except (ValidationError, RecursionError):
        return 0.0
    required = parameters.get("required", [])
    return float(len(required) == len(set(required) & set(parameters["properties"])))


def exactly_right(answer: str, expected: str) -> float:
    """1 if the answer is JSON and equals the expected one in every field. The order of keys is free."""
    return float(field_f1(answer, expected) == 1)


TOOL_METRICS = {
    "exactly_right": Metric("exactly right", "answers that equal the expected JSON in every field", exactly_right),
    "fields": METRICS["fields"],
    "valid_definition": Metric(
        "valid definition", "answers that a client accepts as the definition of a tool", valid_definition
    ),
    "valid_json": METRICS["valid_json"],
}
"""Metrics of tool definitions by name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the rows of this installation and print the counts."""
    parser = argparse.ArgumentParser(description="Tool definitions of this Python's functions, as JSONL.")
    parser.add_argument("--directory", type=Path, required=True, help="where to write train.jsonl and held_out.jsonl")
    _, _, counts = write_rows(parser.parse_args(arguments).directory)
    print("\n".join(f"{count:7,}  {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
