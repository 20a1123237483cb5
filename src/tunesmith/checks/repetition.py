"""Rows, prompts and answers that repeat."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.near_runs import Pairs, representatives, similar_rows
from tunesmith.checks.result import Mark
from tunesmith.checks.table import Tables
from tunesmith.checks.table_check import TableCheck


def repeats(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows whose hash an earlier row has, in order, and the first row with it.

    Args:
        hashes: (rows,); 0 stands for nothing to compare.
    """
    order = np.argsort(hashes, kind="stable")
    in_order = hashes[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = in_order[1:] != in_order[:-1]
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    repeated = ~is_first & (in_order != 0)
    rows, firsts = order[repeated], first[repeated]
    by_row: Any = np.argsort(rows, kind="stable")
    return rows[by_row], firsts[by_row]


def _exact(tables: Tables) -> Iterator[Mark]:
    table = tables.rows
    for row, first in zip(*repeats(table.column("whole")), strict=True):
        source = table.source(first)
        yield Mark(table.source(row), f"the same as {source}", (source,))


def _near(tables: Tables) -> Iterator[Mark]:
    """The label counts too: texts that are nearly the same and have other labels are contradictions."""
    table = tables.rows
    labels = table.column("label")
    skip = np.zeros(table.records, bool)
    skip[repeats(table.column("whole"))[0]] = True
    pairs = similar_rows(table.sets("text"), skip=skip)
    same = labels[pairs.rows] == labels[pairs.others]
    kept = Pairs(pairs.rows[same], pairs.others[same], pairs.similarities[same])
    for row, other, similarity in representatives(kept):
        source = table.source(other)
        yield Mark(table.source(row), f"{similarity:.0%} the same as {source}", (source,))


EXACT_DUPLICATES = TableCheck(
    "exact_duplicates",
    "Exact duplicates",
    "warning",
    "Remove them: a repeated row weighs more than the others and is memorized first. Case and white space are ignored.",
    _exact,
)

NEAR_DUPLICATES = TableCheck(
    "near_duplicates",
    "Near-duplicates",
    "warning",
    "Keep one of each: rows that share 80 % of their runs of three words teach the same thing again.",
    _near,
    views=("text",),
)
