"""A row format, and helpers to read one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.data.turns import MalformedRowError, in_words

Values = Mapping[str, Any]
"""A row's values by field of the format (`question`), not by column name in the file (`Frage`)."""


@dataclass(frozen=True, slots=True, eq=False)
class RowFormat:
    """A row format.

    Attributes:
        noun: a plural noun for messages.
        columns: sets of columns, in order of preference; a row that has all columns of one set is in this format. The
            first set gives the names of the format's fields.
        optional: further columns that it reads.
        read: from the row's values by field to the keyword arguments of an `Example`.
        objective: the objective that the recipe must set to use it; None if most objectives read it.
        detected: whether it is detected from the columns when the objective does not ask for it.
        keeps_columns: whether the example keeps the columns that are no fields.
    """

    noun: str
    columns: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    read: Callable[[Values], dict[str, Any]]
    objective: str | None = None
    detected: bool = True
    keeps_columns: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of all fields that it reads."""
        return (*self.columns[0], *self.optional)


def required(values: Values, field: str) -> Any:
    """The value of the field.

    Raises:
        MalformedRowError: the row has none.
    """
    value = values.get(field)
    if value is None:
        raise MalformedRowError(f"{field} is missing")
    return value


def text_of(values: Values, field: str, default: str | None = None) -> str:
    """The text in the field.

    Raises:
        MalformedRowError: the field is missing and has no default, or is not text.
    """
    value = values.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise MalformedRowError(f"{field} is {in_words(value)}" + ("" if value is None else ", not a text"))
    return value


def nonempty_text(values: Values, field: str) -> str:
    """The text in the field.

    Raises:
        MalformedRowError: the field is missing, not text, or empty.
    """
    text = text_of(values, field)
    if not text.strip():
        raise MalformedRowError(f"the {field} is empty")
    return text
