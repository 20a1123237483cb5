"""A check that looks at one row at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from tunesmith.checks.record import Record
from tunesmith.checks.traits import EVERY, Trait

if TYPE_CHECKING:
    from tunesmith.checks.result import Mark
    from tunesmith.checks.table import Table

Severity = Literal["error", "warning", "note"]
"""An `error` stops a run that asks for checks; a `warning` should be looked at; a `note` is worth knowing."""


class Detail(NamedTuple):
    """What is wrong with a row.

    Attributes:
        text: a short clause that quotes it.
        badness: as a mark's.
    """

    text: str
    badness: float


@dataclass(frozen=True, slots=True)
class RowCheck:
    """A check that needs only the row itself.

    Attributes:
        name: as in `--checks` and in the report: `secrets`.
        title: for people: "Keys and passwords".
        severity: of a row that it marks.
        advice: what to do about the rows that it marks, as a sentence.
        find: what is wrong with the row, as a short clause that quotes it, or with how bad that is; None if nothing is.
        more: further rows, which only the whole set shows, in order.
        stands: whether what was found counts, once all rows are known: a property of the set may explain it.
        traits: every row that it marks has one of these; it does not look at other rows.
    """

    name: str
    title: str
    severity: Severity
    advice: str
    find: Callable[[Record], str | Detail | None]
    stands: Callable[["Table"], bool] | None = None
    more: Callable[["Table"], Iterator["Mark"]] | None = None
    traits: Trait = EVERY
