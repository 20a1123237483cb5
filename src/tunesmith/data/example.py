"""What a row of the user's data becomes, and where it came from."""

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""One turn of a chat: `role`, `content`, and whatever else the template knows (`tool_calls`, `reasoning_content`)."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row stands, as a person would look it up: the file's path as given and the 1-based row."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file} row {self.row:,}"


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn from: a chat (`messages`), or text (`text`), raw or with what is to be told of it.

    Attributes:
        source: the row that it was read from.
        messages: the chat, in order; None for raw text.
        text: the raw text; None for a chat.
        label: the text's class by name, its classes, or its value; None where it has none.
        spans: (start, end, tag) of each word of the text, in characters; None where words have no tags.
        others: texts that belong to the text: one that means the same or answers it, then some that do not.
        tools: JSON schemas of the tools that the chat may call, as chat templates take them.
    """

    source: Source
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    label: str | tuple[str, ...] | float | None = None
    spans: tuple[tuple[int, int, str], ...] | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that could not be understood, and why; it is counted and reported, never dropped in silence."""

    source: Source
    reason: str
