"""Rows of held-out files or benchmarks among those to train on: the same, similar, or with 13 words in a row."""

import json
from collections.abc import Iterator

import numpy as np

from tunesmith.checks.near_runs import similar_rows
from tunesmith.checks.result import Mark, mark_of
from tunesmith.checks.scan import SHARED_RUNS
from tunesmith.checks.table import Table
from tunesmith.checks.table_check import TableCheck

Leak = tuple[int, str, float]
"""The index of the other row, what is in common with it, and how much, from 0 to 1."""


def _leaks(table: Table) -> Iterator[Mark]:
    if not table.given:
        yield from _across_the_split(table)
        return
    found: dict[int, Leak] = {}
    for column, what in (("whole", "the same as"), ("prompt", "the same input as")):
        for row, other in _same(table, column):
            found.setdefault(row, (other, what, 1.0))
    for view, what in (("text", "the same as"), ("prompt", "the same input as")):
        for row, other, similarity in _near(table, view):
            found.setdefault(row, (other, f"{similarity:.0%} {what}", similarity))
    runs = dict(_by_run(table))
    for row in sorted({*found, *runs}):
        if row not in found:
            yield runs[row]
            continue
        other, what, similarity = found[row]
        source = table.source_of_all(other)
        yield Mark(table.source(row), f"{what} {source}", (source,), similarity)


def _across_the_split(table: Table) -> Iterator[Mark]:
    """Training rows that are nearly the same as a held-out row of the same files. The same ones are on one side."""
    held_out = table.column("held_out")
    found: dict[int, tuple[float, int, str]] = {}
    for view, what in (("text", "the same as"), ("prompt", "the same input as")):
        pairs = similar_rows(table.sets(view))
        crossing = np.flatnonzero(held_out[pairs.rows] != held_out[pairs.others])
        for at in crossing.tolist():
            row, other = int(pairs.rows[at]), int(pairs.others[at])
            own, held = (other, row) if held_out[row] else (row, other)
            found[own] = max(found.get(own, (0.0, 0, "")), (float(pairs.similarities[at]), held, what))
    for row, (similarity, other, what) in sorted(found.items()):
        source = table.source(other)
        yield Mark(table.source(row), f"{similarity:.0%} {what} {source}, which is held out", (source,), similarity)


def _same(table: Table, column: str) -> Iterator[tuple[int, int]]:
    values = table.column_of_all(column)
    others, own = values[: table.given], values[table.given :]
    unique, first = np.unique(others, return_index=True)
    if not len(unique):
        return
    places = np.minimum(np.searchsorted(unique, own), len(unique) - 1)
    for row in np.flatnonzero((unique[places] == own) & (own != 0)).tolist():
        yield row, int(first[places[row]])


def _near(table: Table, view: str) -> Iterator[tuple[int, int, float]]:
    pairs = similar_rows(table.sets_of_all(view), given=table.given)
    order = np.lexsort((-pairs.similarities, pairs.rows))
    for at in order.tolist():
        yield int(pairs.rows[at]) - table.given, int(pairs.others[at]), float(pairs.similarities[at])


def _by_run(table: Table) -> Iterator[tuple[int, Mark]]:
    """The rows with a run of words in common, as the workers marked them."""
    if not (table.directory / "leak.bin").exists():
        return
    leaks = np.flatnonzero(np.fromfile(table.directory / "leak.bin", np.bool_)).tolist()
    if leaks:
        with table.marks(SHARED_RUNS).open(encoding="utf-8") as lines:
            yield from zip(leaks, (mark_of(json.loads(line)) for line in lines), strict=True)


LEAKAGE = TableCheck(
    "leakage",
    "Leakage",
    "error",
    "Remove these rows from training, or from what is held out: a score on rows that were trained on says nothing.",
    _leaks,
    views=("prompt", "text"),
    when=lambda table: table.given > 0 or bool(table.column("held_out").any()),
)
