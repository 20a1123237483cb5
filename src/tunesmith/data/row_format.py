"""A form of rows, and what reading one needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.data.turns import NotUnderstoodError, in_words

Values = Mapping[str, Any]
"""A row by the parts that its columns play (`question`), not by the columns' own names (`Frage`)."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A form of rows.

    Attributes:
        described: in words, for messages.
        columns: sets of columns, in order of preference; a row that has all of one of them is of this form. The first
            set is what the form's parts are called.
        optional: columns that it takes too.
        read: from the row's parts to what an `Example` holds.
        objective: the one that takes it, which must be asked for by name; None where most do.
        detected: whether its columns tell it where no objective asks for it.
    """

    described: str
    columns: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    read: Callable[[Values], dict[str, Any]]
    objective: str | None = None
    detected: bool = True

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.columns[0], *self.optional)


def needed(values: Values, part: str) -> Any:
    """What the row has in that part.

    Raises:
        NotUnderstoodError: it has nothing there.
    """
    value = values.get(part)
    if value is None:
        raise NotUnderstoodError(f"{part} is missing")
    return value


def text_of(values: Values, part: str, default: str | None = None) -> str:
    """The text that the row has in that part.

    Raises:
        NotUnderstoodError: it has none there, or something else.
    """
    value = values.get(part)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise NotUnderstoodError(f"{part} is {in_words(value)}" + ("" if value is None else ", not a text"))
    return value


def said(values: Values, part: str) -> str:
    """The text in that part, which says something.

    Raises:
        NotUnderstoodError: as above, or it is empty.
    """
    text = text_of(values, part)
    if not text.strip():
        raise NotUnderstoodError(f"the {part} is empty")
    return text
