"""A check that compares rows with each other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.checks.check import Severity
from tunesmith.checks.result import Mark

if TYPE_CHECKING:
    from tunesmith.checks.table import Table


@dataclass(frozen=True, slots=True)
class TableCheck:
    """A check that needs all rows: their hashes, lengths and sketches, not their texts.

    Attributes:
        name: as in `--checks` and in the report: `near_duplicates`.
        title: for people: "Near-duplicates".
        severity: of a row that it marks.
        advice: what to do about the rows that it marks, as a sentence.
        find: the rows that are marked, in order.
        views: of the rows whose shingles it needs (`tunesmith.checks.sketch.VIEWS`).
        when: whether it can run; all rows are there by then.
    """

    name: str
    title: str
    severity: Severity
    advice: str
    find: Callable[["Table"], Iterator[Mark]]
    views: tuple[str, ...] = ()
    when: Callable[["Table"], bool] = lambda table: True
