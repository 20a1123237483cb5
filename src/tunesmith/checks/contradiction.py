"""The same or nearly the same input with another output."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.near_runs import similar_rows
from tunesmith.checks.repetition import repeats
from tunesmith.checks.result import Mark
from tunesmith.checks.table import Table
from tunesmith.checks.table_check import TableCheck

_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Pair = tuple[int, int, str]
"""A row, an earlier one, and what they have in common."""


def _contradictions(table: Table) -> Iterator[Mark]:
    found: dict[int, Pair] = {}
    for row, other, what in (*_same_input(table), *_reversed(table), *_near_input(table)):
        found.setdefault(row, (row, other, what))
    for row, other, what in sorted(found.values()):
        source = table.source(other)
        yield Mark(table.source(row), f"{what} {source}", (source,))


def _outputs(table: Table) -> NDArray[np.uint64]:
    found = table.column("label")
    found *= _FACTOR
    found ^= table.column("answer")
    return found


def _inputs(table: Table) -> NDArray[np.uint64]:
    """0 where there is no input, or answers are compared: one prompt then has many."""
    found = table.column("prompt")
    found[table.column("others") != 0] = 0
    return found


def _same_input(table: Table) -> Iterator[Pair]:
    rows, firsts = repeats(_inputs(table))
    outputs = _outputs(table)
    differ = outputs[rows] != outputs[firsts]
    del outputs
    rows, firsts = rows[differ], firsts[differ]
    has_label = table.column("label")[rows] != 0
    for row, first, labeled in zip(rows.tolist(), firsts.tolist(), has_label.tolist(), strict=True):
        yield row, first, f"another {'label' if labeled else 'answer'} to the same input as"


def _near_input(table: Table) -> Iterator[Pair]:
    """Inputs with other numbers are other questions, however similar they are."""
    for view in ("prompt", "text"):
        skip = _inputs(table) == 0
        if view == "text":
            skip |= table.column("label") == 0
        if skip.all():
            continue
        whole = table.column("whole")
        whole[skip] = 0
        skip[repeats(whole)[0]] = True
        del whole
        pairs = similar_rows(table.sets(view), skip=skip)
        differ = np.ones(len(pairs.rows), np.bool_)
        for column, is_same in ((_outputs(table), False), (table.column("numbers"), True)):
            differ &= (column[pairs.rows] == column[pairs.others]) == is_same
        rows, others, similarities = pairs.rows[differ], pairs.others[differ], pairs.similarities[differ]
        has_label = table.column("label")[rows] != 0
        for row, other, similarity, labeled in zip(
            *map(np.ndarray.tolist, (rows, others, similarities, has_label)), strict=True
        ):
            kind = "label" if labeled else "answer"
            yield row, other, f"another {kind} to an input that is {similarity:.0%} the same as"


def _reversed(table: Table) -> Iterator[Pair]:
    """Preferences the other way round."""
    rows = np.flatnonzero(table.column("others"))
    if not len(rows):
        return
    forward, backward = (_ordered(table, rows, *names) for names in (("answer", "others"), ("others", "answer")))
    first = {int(forward[at]): int(rows[at]) for at in np.flatnonzero(np.isin(forward, backward))[::-1]}
    for at in np.flatnonzero(np.isin(backward, forward)):
        row, earlier = int(rows[at]), first.get(int(backward[at]))
        if earlier is not None and earlier < row:
            yield row, earlier, "the opposite preference of"


def _ordered(table: Table, rows: NDArray[np.int64], *names: str) -> NDArray[np.uint64]:
    """A hash of the prompt and these columns, of some rows."""
    found = table.column("prompt")[rows]
    for name in names:
        found *= _FACTOR
        found ^= table.column(name)[rows]
    return found


CONTRADICTIONS = TableCheck(
    "contradictions",
    "Contradictions",
    "warning",
    "Decide which of the two is right, and remove or correct the other. If several answers are meant, leave them.",
    _contradictions,
    views=("prompt", "text"),
)
