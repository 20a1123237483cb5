"""Rows, prompts and answers that repeat."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.near_runs import PIECE, Pairs, representatives, similar_rows
from tunesmith.checks.result import Mark
from tunesmith.checks.sketch import hash_of
from tunesmith.checks.table import Table
from tunesmith.checks.table_check import TableCheck

LONG_ANSWER = 40
"""Characters from which an answer that repeats is marked: "Yes." may be right for many prompts."""

TIMES = 3
"""Rows that must have such an answer."""

OPENING_SHARE, OPENING_ROWS = 0.05, 10
"""The share of the rows, and the number, from which an opening is boilerplate."""


def repeats(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows whose hash an earlier row has, in order, and the first row with it.

    Args:
        hashes: (rows,); 0 stands for nothing to compare.
    """
    which = _with_a_hash_that_repeats(hashes)
    order = which[np.argsort(hashes[which], kind="stable")]
    in_order = hashes[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = in_order[1:] != in_order[:-1]
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    repeated = ~is_first & (in_order != 0)
    rows, firsts = order[repeated], first[repeated]
    by_row: Any = np.argsort(rows, kind="stable")
    return rows[by_row], firsts[by_row]


def _with_a_hash_that_repeats(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The rows whose hash another row has: few of most sets, so that little more than the hashes is in memory."""
    in_order = np.sort(hashes)
    known = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    del in_order
    found = [np.empty(0, np.int64)]
    for start in range(0, len(hashes) if len(known) else 0, PIECE):
        piece = hashes[start : start + PIECE]
        places = np.minimum(np.searchsorted(known, piece), len(known) - 1)
        found.append(np.flatnonzero((known[places] == piece) & (piece != 0)) + start)
    return np.concatenate(found)


def _exact(table: Table) -> Iterator[Mark]:
    for row, first in zip(*repeats(table.column("whole")), strict=True):
        source = table.source(first)
        yield Mark(table.source(row), f"the same as {source}", (source,))


def _near(table: Table) -> Iterator[Mark]:
    """The label counts too: texts that are nearly the same and have other labels are contradictions."""
    skip = np.zeros(table.records, bool)
    skip[repeats(table.column("whole"))[0]] = True
    pairs = similar_rows(table.sets("text"), skip=skip)
    labels = table.column("label")
    same = labels[pairs.rows] == labels[pairs.others]
    kept = Pairs(pairs.rows[same], pairs.others[same], pairs.similarities[same])
    for row, other, similarity in representatives(kept):
        source = table.source(other)
        yield Mark(table.source(row), f"{similarity:.0%} the same as {source}", (source,), similarity)


def _answers(table: Table) -> Iterator[Mark]:
    answers = table.column("answer")
    answers[table.column("answer_length") < LONG_ANSWER] = 0
    rows, firsts = repeats(answers)
    del answers
    whole = table.column("whole")
    _, which, times = np.unique(firsts, return_inverse=True, return_counts=True)
    for row, first, count in zip(rows, firsts, times[which] + 1 if len(rows) else (), strict=True):
        if count >= TIMES and whole[row] != whole[first]:
            source = table.source(first)
            yield Mark(table.source(row), f"one of {count:,} rows with the answer of {source}", (source,), count)


def _openings(table: Table) -> Iterator[Mark]:
    least = max(OPENING_ROWS, OPENING_SHARE * table.records)
    frequent = {hash_of(words): (words, count) for words, count in table.openings.items() if count >= least}
    if not frequent:
        return
    openings = table.column("opening")
    for row in np.flatnonzero(np.isin(openings, np.array(list(frequent), np.uint64))).tolist():
        words, count = frequent[int(openings[row])]
        detail = f"begins with {words!r}, as {count:,} of {table.records:,} answers do"
        yield Mark(table.source(row), detail, (), count)


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

REPEATED_ANSWERS = TableCheck(
    "repeated_answers",
    "Answers that repeat",
    "note",
    "Look whether the answer fits each of its prompts. A model learns to give it whenever it is not sure.",
    _answers,
)

REPEATED_OPENINGS = TableCheck(
    "repeated_openings",
    "Answers that begin the same",
    "note",
    "Remove the opening if it says nothing: the model will begin every answer with it.",
    _openings,
)
