"""Texts within nested values: the arguments of tool calls, which rows write as objects or as JSON in a text."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

Change = Callable[[str, str], str]
"""(text, the name of the argument that it is, or "") → the text to write."""

SHORT = 100_000
"""Smaller numbers are nobody's, and stay numbers."""

ARGUMENTS = "arguments"
"""The key of a tool call below which names say what values are, as in every format for calls."""


def named_texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The texts and longer whole numbers in a value, each with the nearest key above it.

    Args:
        value: of objects and lists.
        name: of the value itself.
    """
    if isinstance(value, dict):
        for key, each in value.items():
            yield from named_texts(each, str(key))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from named_texts(each, name)
    elif isinstance(value, str) and value:
        yield name, value
    elif _is_long_number(value):
        yield name, str(value)


def with_changed_texts(value: Any, change: Change, name: str | None = None) -> Any:
    """The value with all of its texts changed, also those in JSON that is written in a text, which stays JSON.

    Args:
        value: of objects and lists: a row.
        change: of a text.
        name: of the argument that the value is; None if it is none, and then numbers stay as they are.

    Returns:
        A value of the same shape. A number that is changed becomes a number again if it can, else a text.
    """
    if isinstance(value, str):
        return _changed_text(value, change, name)
    if isinstance(value, list):
        return [with_changed_texts(each, change, name) for each in value]
    if isinstance(value, dict):
        is_named = name is not None
        return {
            key: with_changed_texts(each, change, str(key) if is_named else "" if key == ARGUMENTS else None)
            for key, each in value.items()
        }
    if name is not None and _is_long_number(value) and (changed := change(str(value), name)) != str(value):
        return int(changed) if changed.isdecimal() and not changed.startswith("0") else changed
    return value


def _changed_text(text: str, change: Change, name: str | None) -> str:
    inner = _json(text)
    if inner is not None:
        changed = with_changed_texts(inner, change, name or "")  # the keys in it say what values are
        if changed != inner:
            text = json.dumps(changed, ensure_ascii=False)
        if name is not None:  # an argument: checks look at the texts in it
            return text
    return change(text, name or "")


def _json(text: str) -> Any:
    """The object or list that a text is in JSON; None if it is none."""
    if text[:1] in ("{", "[") or text[:1].isspace():
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
            return found if isinstance(found, dict | list) else None
    return None


def _is_long_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) >= SHORT
