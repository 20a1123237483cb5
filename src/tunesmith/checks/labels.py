"""Labels: how evenly they are spread, and whether similar texts have the same."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.labeled import Labeled, is_labeled, labeled
from tunesmith.checks.result import Mark
from tunesmith.checks.sketch import hash_of
from tunesmith.checks.table import Table
from tunesmith.checks.table_check import TableCheck

RARE = 10
"""A class is rare if the most frequent one has at least this many times its rows."""

NEIGHBORS = 10
"""Most similar rows that a row is compared with."""

AGREEING = 6
"""Neighbors that must have the same other label for a row to be marked."""

BLOCK = 512
"""Rows whose similarities are computed at once."""


def _imbalance(table: Table) -> Iterator[Mark]:
    """One mark for each rare class: its first row."""
    if not is_labeled(table):
        return
    total, (largest, most) = table.labels.total(), table.labels.most_common(1)[0]
    rare = {hash_of(name): (name, count) for name, count in table.labels.items() if RARE * count <= most}
    hashes, first = np.unique(table.column("label"), return_index=True)
    for row in np.sort(first[np.isin(hashes, np.array(list(rare), np.uint64))]).tolist():
        name, count = rare[int(table.column("label")[row])]
        scarcity = most / count
        detail = (
            f"class {name!r} has {count:,} of {total:,} rows ({count / total:.2%}); {largest!r} has "
            f"{scarcity:,.0f} times as many"
        )
        yield Mark(table.source(row), detail, (), scarcity)


def _disagreeing(table: Table) -> Iterator[Mark]:
    rows = labeled(table)
    if len(rows.texts) <= NEIGHBORS:
        return
    near = nearest(rows.features)
    labels = rows.labels[near]
    agreement = float((labels == rows.labels[:, None]).mean())
    for row, others in enumerate(labels):
        counts = np.bincount(others, minlength=len(rows.classes))
        best = int(counts.argmax())
        if counts[rows.labels[row]] == 0 and counts[best] >= AGREEING:
            detail = (
                f"{counts[best]} of the {NEIGHBORS} most similar rows have the label {rows.classes[best]!r}, none has "
                f"{rows.classes[rows.labels[row]]!r}; usually {agreement:.0%} have the same label"
            )
            yield Mark(rows.sources[row], detail, _same(rows, near[row], best), float(counts[best]))


def _same(rows: Labeled, near: NDArray[np.int64], label: int) -> Any:
    return tuple(islice((rows.sources[other] for other in near if rows.labels[other] == label), 3))


def nearest(features: Any) -> NDArray[np.int64]:
    """The most similar other rows (rows, NEIGHBORS), the most similar first.

    Args:
        features: (rows, words), sparse, rows of length 1.
    """
    found = np.empty((features.shape[0], NEIGHBORS), np.int64)
    transposed = features.T.tocsr()
    for start in range(0, len(found), BLOCK):
        similarities = (features[start : start + BLOCK] @ transposed).toarray()
        own = np.arange(len(similarities))
        similarities[own, start + own] = -1
        best = np.argpartition(-similarities, NEIGHBORS, axis=1)[:, :NEIGHBORS]
        order = np.argsort(-np.take_along_axis(similarities, best, axis=1), axis=1, kind="stable")
        found[start : start + BLOCK] = np.take_along_axis(best, order, axis=1)
    return found


LABEL_IMBALANCE = TableCheck(
    "label_imbalance",
    "Rare classes",
    "warning",
    "Collect more rows of these classes, weigh them, or even the classes out: `tunesmith data balance`.",
    _imbalance,
    when=lambda table: len(table.labels) > 0,
)

LABEL_NEIGHBORS = TableCheck(
    "label_neighbors",
    "Labels that no similar row has",
    "note",
    "Look at them beside their neighbors: the label is wrong, or two classes need a clearer line between them.",
    _disagreeing,
    when=is_labeled,
)
