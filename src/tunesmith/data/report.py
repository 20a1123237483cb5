"""Counts of the data pipeline, from rows to tokens: every row that is left out is counted and named."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.data.example import Source
from tunesmith.data.mix import Contribution

SHOWN = 5
"""Rows to name in a message or keep in a report."""

_OF_THE_ROW = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\([^()]*\)|<[^<>\s]+>|\d[\d,.]*""")
"""What differs between two rows with the same reason: quoted text, parentheses, tags and numbers."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why some rows cannot be used.

    Attributes:
        rows: how many.
        first: the first of them.
        text: the reason, as it is for the first row.
    """

    rows: int
    first: Source
    text: str

    def __str__(self) -> str:
        first = f"the first is {self.first}" if self.rows > 1 else str(self.first)
        return f"{self.rows:,} {'rows' if self.rows > 1 else 'row'}, {first}: {self.text}"


class Reasons:
    """Counts rows that cannot be used, by reason. Reasons that differ only in what they quote of the row are one."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Reason] = {}

    def add(self, source: Source, text: str) -> None:
        """Count a row.

        Args:
            source: the row.
            text: why it cannot be used.
        """
        kind = _OF_THE_ROW.sub("…", text)
        known = self._by_kind.get(kind, Reason(0, source, text))
        self._by_kind[kind] = replace(known, rows=known.rows + 1)

    @property
    def rows(self) -> int:
        """All rows that were counted."""
        return sum(reason.rows for reason in self._by_kind.values())

    def by_count(self) -> tuple[Reason, ...]:
        """The reasons, the most frequent first."""
        return tuple(sorted(self._by_kind.values(), key=lambda reason: -reason.rows))


@dataclass
class DataReport:
    """What was in the data and what was done with it. The `data` event has these fields.

    Attributes:
        format: the row format, detected or set in the recipe.
        rows: rows read, including malformed ones.
        malformed: rows that could not be parsed; `malformed_rows` names the first few with reasons.
        unusable: rows that the chat template cannot render or that would teach nothing; `unusable_rows` names the
            first few.
        boilerplate: characters of web pages that are not their text: navigation, scripts, footers; left out.
        separate_turns: earlier turns that became examples of their own, because the template rewrites them once a later
            turn follows.
        held_out_rows: examples kept out of training.
        examples: training examples, after splitting and dropping.
        truncated, split, dropped: examples over `data.max_length`, by what was done with them.
        joined: rows of `data.max_length` tokens that concatenated documents were cut into.
        sources: what each source of a mix contributes, in its order; empty if there is only one.
        unlearnable: pieces of split examples without a loss token, left out.
        tokens, loss_tokens: in the training examples.
        held_out_tokens, held_out_loss_tokens: in the held-out ones.
        longest: tokens of the longest example before any cut.
        length_histogram: [upper edge in tokens, examples] of the training examples.
        cached: whether the tokens came from the cache.
    """

    format: str = ""
    rows: int = 0
    malformed: int = 0
    malformed_rows: list[str] = field(default_factory=list)
    unusable: int = 0
    unusable_rows: list[str] = field(default_factory=list)
    boilerplate: int = 0
    separate_turns: int = 0
    held_out_rows: int = 0
    examples: int = 0
    truncated: int = 0
    split: int = 0
    dropped: int = 0
    unlearnable: int = 0
    joined: int = 0
    sources: tuple[Contribution, ...] = ()
    tokens: int = 0
    loss_tokens: int = 0
    held_out_tokens: int = 0
    held_out_loss_tokens: int = 0
    longest: int = 0
    length_histogram: list[tuple[int, int]] = field(default_factory=list)
    cached: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any], **changes: Any) -> "DataReport":
        """The report that `dataclasses.asdict` made, with changes."""
        sources = tuple(Contribution(**each) for each in values.get("sources", ()))
        return cls(**{**values, "sources": sources, **changes})
