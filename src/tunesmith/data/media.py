"""Images, audio and video in rows. No objective can use them yet, so a row that holds some is malformed: its texts
alone would teach answers about something that the model does not see."""

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

UNUSABLE = "which no objective can use yet"

FEW = 64
"""Columns of a row up to which what is known of them is kept for the next row with the same ones."""

NOUNS = {"image": "images", "img": "images", "video": "videos", "audio": "audio"}
"""How a column or a part of a message begins → what it holds."""

_COLUMN = re.compile(r"(image|img|video|audio)s?(_(path|file|byte)s?)?", re.IGNORECASE)
_PART = re.compile(r"(?:input_)?(image|video|audio)s?(_(url|path|file))?", re.IGNORECASE)
_NOTHING = re.compile(r"\s*(|\[\s*\]|\{\s*\}|null|none|nan|true|false|[-+]?\d*\.?\d+)\s*", re.IGNORECASE)
"""What a CSV file has for an empty value, a mark or a number."""

_PLACEHOLDER = re.compile(r"\A\s*<(image|video|audio)>[^\S\n]*\n|\n[^\S\n]*<(image|video|audio)>\s*\Z")
"""A placeholder as LLaVA writes it: on a line of its own, the first or the last of a question."""


def media_key(values: Mapping[str, Any], ignored: Collection[str] = ()) -> tuple[str, str] | None:
    """The first column of a row, or key of a turn, that holds media, and what it holds; None if none does.

    It does if its name says so and its value is a text, bytes, or an object or a list of them that is not empty, such
    as `{bytes, path}` of Hugging Face's data sets. Numbers are counts or marks.

    Args:
        values: by name of the column or key.
        ignored: columns that the recipe reads as text.
    """
    find = _named_as_media if len(values) <= FEW else _named_as_media.__wrapped__
    for key, noun in find(tuple(values)):
        if key not in ignored and _is_given(values[key]):
            return str(key), noun
    return None


@lru_cache(4096)
def _named_as_media(keys: tuple[Any, ...]) -> tuple[tuple[Any, str], ...]:
    """The keys whose name is that of media, and what they may hold; most rows of a set have the same keys."""
    found = ((key, _COLUMN.fullmatch(str(key))) for key in keys)
    return tuple((key, NOUNS[name[1].lower()]) for key, name in found if name is not None)


def media_part(part: Mapping[str, Any]) -> tuple[str, str] | None:
    """The type of a message's part, and what it holds; None if it is not media.

    The type of such a part is `image_url`, `input_audio` or the like; Qwen-VL's parts have a key instead, as in
    `{image: path}`.
    """
    kinds = [str(part["type"])] if part.get("type") is not None else [str(key) for key in part if _is_given(part[key])]
    return next(((kind, NOUNS[match[1].lower()]) for kind in kinds if (match := _PART.fullmatch(kind))), None)


def placeholder(text: str) -> tuple[str, str] | None:
    """The placeholder that the question begins or ends with, such as `<image>`, and what it is for; else None.

    A text that only talks about such a tag, in the middle of a line, and HTML, which closes it, have none.
    """
    match = _PLACEHOLDER.search(text)
    name = match and (match[1] or match[2])
    return None if not name or f"</{name}>" in text else (f"<{name}>", NOUNS[name])


def _is_given(value: Any) -> bool:
    """Whether there is something: not None, a number alone, an empty text, list or object, nor one of such."""
    match value:
        case None | bool() | int() | float():
            return False
        case str():
            return _NOTHING.fullmatch(value) is None
        case bytes():
            return bool(value)
        case Mapping():
            return any(map(_is_given, value.values()))
        case list() | tuple():
            return any(isinstance(each, int | float) or _is_given(each) for each in value)  # pixels, samples
    return True
