"""JSON Schema types of Python annotations, default values and docstrings, all read as text and never evaluated.

Where `transformers.utils.get_json_schema` has an answer, this is the same one. It also covers what that refuses: paths,
abstract collections, and types that are only documented.
"""

import ast
import json
import re
from contextlib import suppress
from typing import Any

Schema = dict[str, Any]
"""A JSON Schema. Empty: any value."""

_SCALAR_NAMES = {
    "integer": "int integer Integral",
    "number": "float Real Number number",
    "boolean": "bool boolean",
    "string": "str string LiteralString AnyStr Path PurePath PathLike",
    "null": "None NoneType",
}
SCALARS: dict[str, Schema] = {name: {"type": kind} for kind, names in _SCALAR_NAMES.items() for name in names.split()}
ANYTHING = frozenset({"Any", "object"})
ARRAYS = frozenset(
    """list List tuple Tuple set Set frozenset FrozenSet Sequence MutableSequence Iterable Collection AbstractSet
    sequence iterable""".split()
)
NUMERIC_ARRAYS = frozenset({"ndarray", "NDArray", "ArrayLike", "array_like"})
OBJECTS = frozenset("dict Dict Mapping MutableMapping OrderedDict defaultdict mapping dictionary".split())

_SEPARATOR = re.compile(r"(?:, or | or |, ?)(?![^\[]*\])")  # not in brackets
_ADJECTIVES = re.compile(r"^(?:an?|non-negative|positive|a python) ")
_JSON_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def annotated_type(annotation: ast.expr | None) -> Schema | None:
    """The type of an annotation.

    A union leaves out members that JSON cannot express: a caller can pass the others.

    Args:
        annotation: as parsed; a string is parsed in turn.

    Returns:
        The schema, empty for Any, or None if JSON has no such type.
    """
    match annotation:
        case ast.Constant(value=None):
            return {"type": "null"}
        case ast.Constant(value=str(text)):
            return _parsed_type(text)
        case ast.Name() | ast.Attribute():
            return _bare_type(_last_name(annotation))
        case ast.BinOp(op=ast.BitOr()):
            return _union(_known(_members(annotation)))
        case ast.Subscript(value=generic, slice=ast.Tuple(elts=arguments)):
            return _generic_type(_last_name(generic), arguments)
        case ast.Subscript(value=generic, slice=argument):
            return _generic_type(_last_name(generic), [argument])
    return None


def default_type(default: ast.expr | None) -> Schema | None:
    """The type of a default value: of `3`, integer. None if there is none, it is None, or not a literal."""
    match literal(default):
        case None:
            return None
        case list() | tuple() | set():
            return {"type": "array"}
        case dict():
            return {"type": "object"}
        case value:
            name = _JSON_NAMES.get(type(value))
            return {"type": name} if name else None


def documented_type(text: str) -> Schema | None:
    """The type in a docstring: `int, optional`, ``{'a', 'b'}``, `list of str`, `float or None`.

    Args:
        text: what a docstring gives as the type of a parameter.

    Returns:
        The schema, or None if the text is not understood.
    """
    text = re.sub(r"[`*]", "", text).strip()
    text = re.split(r",? *\(?\b(?:optional|[Dd]efaults?|(?:of )?shape|of length)\b", text)[0].rstrip(" ,(")
    text = re.sub(r"\barray[- ]like\b", "array_like", text)
    text = re.sub(r"\b(list|tuple|sequence|iterable|set)s? of (\w+?)s?\b(?= or |,|$)", r"\1[\2]", text)
    text = re.sub(r"\{(['\"\d-][^{}:]*|None, ['\"][^{}:]*)\}", r"Literal[\1]", text)
    members = _SEPARATOR.split(text.strip("{}"))
    schemas = [_parsed_type(_ADJECTIVES.sub("", member)) for member in members]
    return _union([schema for schema in schemas if schema is not None])


def literal(expression: ast.expr | None) -> Any:
    """The value of a literal; None if there is no expression or it is not a literal."""
    with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None if expression is None else ast.literal_eval(expression)
    return None


def is_json_scalar(value: Any) -> bool:
    """Whether it is a boolean, a finite number or a string; None is not."""
    return isinstance(value, bool | int | str) or (isinstance(value, float) and json.dumps(value)[-1].isdigit())


def _parsed_type(text: str) -> Schema | None:
    try:
        return annotated_type(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def _bare_type(name: str) -> Schema | None:
    if name in SCALARS:
        return dict(SCALARS[name])
    if name in ANYTHING:
        return {}
    if name in ARRAYS | NUMERIC_ARRAYS:
        return {"type": "array"}
    return {"type": "object"} if name in OBJECTS else None


def _generic_type(name: str, arguments: list[ast.expr]) -> Schema | None:
    if name == "Literal":
        return _enum(arguments)
    if name == "Union":
        return _union(_known(arguments))
    if name == "Optional":
        return _union([*_known(arguments), {"type": "null"}])
    if name in ("Annotated", "Required", "NotRequired", "Final"):
        return annotated_type(arguments[0])
    if name in ("tuple", "Tuple"):
        return _tuple(arguments)
    if name in ARRAYS:
        return _with("array", "items", arguments[0])
    if name in OBJECTS and len(arguments) == 2:
        return _with("object", "additionalProperties", arguments[1])
    return _bare_type(name) if name in NUMERIC_ARRAYS or name == "PathLike" else None


def _with(kind: str, key: str, inner: ast.expr) -> Schema | None:
    schema = annotated_type(inner)
    return None if schema is None else {"type": kind, key: schema}


def _tuple(arguments: list[ast.expr]) -> Schema | None:
    if len(arguments) == 2 and isinstance(arguments[1], ast.Constant) and arguments[1].value is ...:
        return _with("array", "items", arguments[0])
    items = [annotated_type(argument) for argument in arguments]
    return None if None in items else {"type": "array", "prefixItems": items}


def _enum(arguments: list[ast.expr]) -> Schema | None:
    try:
        values = [ast.literal_eval(argument) for argument in arguments]
        kinds = list(dict.fromkeys(_JSON_NAMES[type(value)] for value in values))
    except (ValueError, KeyError):
        return None
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _known(members: list[ast.expr]) -> list[Schema]:
    return [schema for member in members if (schema := annotated_type(member)) is not None]


def _union(schemas: list[Schema]) -> Schema | None:
    inner = [schema for schema in schemas if schema != {"type": "null"}]
    if not inner:
        return None
    nullable = {"nullable": True} if len(inner) < len(schemas) else {}
    if len(inner) == 1:
        return inner[0] | nullable
    if all(set(schema) == {"type"} and isinstance(schema["type"], str) for schema in inner):
        names = sorted({schema["type"] for schema in inner})
        return {"type": names[0] if len(names) == 1 else names} | nullable
    return {"anyOf": inner} | nullable


def _members(union: ast.expr) -> list[ast.expr]:
    """The members of `a | b | c`."""
    if isinstance(union, ast.BinOp) and isinstance(union.op, ast.BitOr):
        return _members(union.left) + _members(union.right)
    return [union]


def _last_name(expression: ast.expr) -> str:
    """`Path` of `pathlib.Path`; empty if it is not a name."""
    if isinstance(expression, ast.Attribute):
        return expression.attr
    return expression.id if isinstance(expression, ast.Name) else ""
