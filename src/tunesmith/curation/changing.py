"""Changes within a row: broken characters fixed, personal data masked, another label."""

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.checks.mask import mask
from tunesmith.checks.nested import with_changed_texts
from tunesmith.data.row_formats import format_named
from tunesmith.errors import UserError

WORDS = ({"tokens", "words"}, {"tags", "ner_tags", "labels"})
"""Columns of words and of a tag for each."""


def has_positions(values: Any) -> bool:
    """Whether a row has labels of positions in its text, which no longer fit once the text is changed.

    Args:
        values: the row's columns.
    """
    if not isinstance(values, dict):
        return False
    lists = {str(name).lower(): value for name, value in values.items() if isinstance(value, list)}
    if all(names & lists.keys() for names in WORDS):
        return True
    return any(_is_span(each) for value in lists.values() for each in value)


def _is_span(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("start"), int) and isinstance(value.get("end"), int)
    return isinstance(value, list) and len(value) == 3 and all(isinstance(each, int) for each in value[:2])


def fixed(value: Any) -> Any:
    """Mojibake fixed in all texts of a row (`ftfy`): `schÃ¶n` becomes `schön`. Nothing else is changed.

    Args:
        value: the row's columns, or one of them.
    """
    from ftfy import fix_encoding

    return with_changed_texts(value, lambda text, name: str(fix_encoding(text)))


def masked(value: Any, seed: int | str) -> Any:
    """Personal data and secrets in all texts of a row replaced by pseudonyms.

    Args:
        value: the row's columns.
        seed: another one gives other pseudonyms.
    """
    return mask(value, seed=seed).value


def relabeled(values: Any, label: str, format: str, columns: Mapping[str, str]) -> Any:
    """The row with another label.

    Args:
        values: the row's columns.
        label: the new one.
        format: the row format.
        columns: field → column, from `data.columns`.

    Raises:
        UserError: rows of this format have no label.
    """
    column = _label_column(values, format, columns)
    old = values[column]
    new: Any = int(label) if isinstance(old, int) and label.lstrip("-").isdecimal() else label
    return {**values, column: [new] if isinstance(old, list) else new}


def line_of_values(values: Any) -> bytes:
    """A row as a line of JSON.

    Args:
        values: its columns, or its text.
    """
    return (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _label_column(values: Any, format: str, columns: Mapping[str, str]) -> str:
    """The column that has the label."""
    kind = format_named(format)
    fields = {"classification": "label", "multi_label": "labels", "regression": "score"}
    if format not in fields or not isinstance(values, dict):
        raise UserError(f"Rows of the format {format} have no label that a verdict could change.")
    if fields[format] in columns:
        return columns[fields[format]]
    by_name = {str(column).lower(): str(column) for column in values}
    for names in kind.columns:
        if all(name in by_name for name in names):
            return by_name[names[kind.columns[0].index(fields[format])]]
    raise UserError(f"No column of the row ({', '.join(by_name)}) is the label of the format {format}.")
