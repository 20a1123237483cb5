"""A row of the user's data as an example, and its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""One turn of a chat: `role`, `content`, and the other keys that the template takes, such as `tool_calls`."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row is, as a person would look it up: the file's path as given, and the 1-based row number."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file} row {self.row:,}"


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is in the file.

    Attributes:
        values: its columns, or the text itself.
        source: where it is.
        left_out: characters of the page around it that are not its text: navigation, scripts, footers.
    """

    values: dict[str, Any] | str
    source: Source
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One of several ways in which a chat continues, and how good it is.

    Attributes:
        messages: the turns after the example's own `messages`, at least one of them the assistant's.
        score: higher is better; only what differs within an example counts, except where one completion alone is
            rated: 1 for good, 0 for bad.
    """

    messages: tuple[Message, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Example:
    """One example: a chat (`messages`), or a text (`text`), raw or labeled.

    Attributes:
        source: the row it comes from.
        messages: the chat, in order; None for raw text.
        text: the raw text; None for a chat.
        label: the text's class name, its class names, or its value; None if it has none.
        spans: (start, end, tag) of each word of the text, in characters; None if words have no tags.
        others: for a pair: the positive text, which means the same or answers it, then the negatives.
        tools: JSON schemas of the tools that the chat may call, as chat templates take them.
        completions: how the chat continues, each with a score; empty unless the row compares or rates answers.
        columns: of a prompt: what else its row has, by column, for functions that score completions.
    """

    source: Source
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    label: str | tuple[str, ...] | float | None = None
    spans: tuple[tuple[int, int, str], ...] | None = None
    others: tuple[str, ...] = ()
    completions: tuple[Completion, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that could not be parsed, and why. It is counted and reported, never dropped silently."""

    source: Source
    reason: str
