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
    return table.column("answer") ^ (table.column("label") * _FACTOR)


def _inputs(table: Table) -> NDArray[np.uint64]:
    """0 where there is no input, or answers are compared: one prompt then has many."""
    return np.where(table.column("others") == 0, table.column("prompt"), np.uint64(0))


def _same_input(table: Table) -> Iterator[Pair]:
    outputs, has_label = _outputs(table), table.column("label") != 0
    rows, firsts = repeats(_inputs(table))
    for row, first in zip(rows.tolist(), firsts.tolist(), strict=True):
        if outputs[row] != outputs[first]:
            yield row, first, f"another {'label' if has_label[row] else 'answer'} to the same input as"


def _near_input(table: Table) -> Iterator[Pair]:
    """Inputs with other numbers are other questions, however similar they are."""
    outputs, numbers, label = _outputs(table), table.column("numbers"), table.column("label")
    compares = _inputs(table) != 0
    for view, skip in (("prompt", ~compares), ("text", ~compares | (label == 0))):
        if skip.all():
            continue
        skip[repeats(np.where(skip, np.uint64(0), table.column("whole")))[0]] = True
        pairs = similar_rows(table.sets(view), skip=skip)
        for row, other, similarity in zip(
            pairs.rows.tolist(), pairs.others.tolist(), pairs.similarities.tolist(), strict=True
        ):
            if outputs[row] != outputs[other] and numbers[row] == numbers[other]:
                kind = "label" if label[row] else "answer"
                yield row, other, f"another {kind} to an input that is {similarity:.0%} the same as"


def _reversed(table: Table) -> Iterator[Pair]:
    """Preferences the other way round."""
    prompt, answer, others = (table.column(name) for name in ("prompt", "answer", "others"))
    compares = others != 0
    forward = np.where(compares, (prompt * _FACTOR ^ answer) * _FACTOR ^ others, np.uint64(0))
    backward = np.where(compares, (prompt * _FACTOR ^ others) * _FACTOR ^ answer, np.uint64(0))
    first = {int(forward[row]): row for row in np.flatnonzero(np.isin(forward, backward) & compares)[::-1].tolist()}
    for row in np.flatnonzero(np.isin(backward, forward) & compares).tolist():
        earlier = first.get(int(backward[row]))
        if earlier is not None and earlier < row:
            yield row, earlier, "the opposite preference of"


CONTRADICTIONS = TableCheck(
    "contradictions",
    "Contradictions",
    "warning",
    "Decide which of the two is right, and remove or correct the other. If several answers are meant, leave them.",
    _contradictions,
    views=("prompt", "text"),
)
