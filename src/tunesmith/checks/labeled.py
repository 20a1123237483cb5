"""The labeled texts among the rows, read again for the checks that need more than their hashes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.inputs import rows_of, tasks
from tunesmith.checks.record import Record, record_of
from tunesmith.checks.scan import example_of
from tunesmith.checks.table import Table
from tunesmith.data.example import Example, Source

MOST = 20_000
"""Labeled rows that are compared; of more, those with the lowest hash of their text."""

FEWEST = 5
"""Rows of a class that is compared."""

FEATURES = 4_000_000
"""Words times classes, at most: the weights of a classifier."""


@dataclass(frozen=True)
class Labeled:
    """Texts with classes.

    Attributes:
        sources: of the rows.
        texts: what the labels are of.
        classes: the names of the classes, sorted.
        labels: (rows,) int64: indices of classes.
        left_out: rows that were not taken: of more than `MOST`, or of classes with fewer than `FEWEST` rows.
    """

    sources: tuple[Source, ...]
    texts: tuple[str, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    left_out: int

    @cached_property
    def features(self) -> Any:
        """TF-IDF of words and pairs of words (rows, words), float32, sparse, rows of length 1."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        most = max(1000, FEATURES // max(1, len(self.classes)))
        pattern = r"(?u)\b\w+\b"
        words = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, max_features=most, token_pattern=pattern, dtype=np.float32
        )
        return words.fit_transform(self.texts)


def is_labeled(table: Table) -> bool:
    """Whether the rows have classes: at least two labels, which repeat.

    Args:
        table: of the rows.
    """
    return 2 <= len(table.labels) <= table.labels.total() / FEWEST


def labeled(table: Table) -> Labeled:
    """The labeled rows, in order.

    Args:
        table: of the rows.
    """
    chosen = _chosen(table)
    classes = tuple(sorted(name for name, count in table.labels.items() if count >= FEWEST))
    index = {name: number for number, name in enumerate(classes)}
    records = [
        record
        for record, is_chosen in zip(records_of(table), chosen, strict=True)
        if is_chosen and record.label in index
    ]
    labels = np.array([index[record.label or ""] for record in records], np.int64)
    kept = np.bincount(labels, minlength=len(classes))[labels] >= FEWEST
    records = [record for record, keep in zip(records, kept, strict=True) if keep]
    return Labeled(
        tuple(record.source for record in records),
        tuple(record.prompt for record in records),
        classes,
        labels[kept],
        table.labels.total() - len(records),
    )


def records_of(table: Table) -> Iterator[Record]:
    """As `examples_of`, as checks see them.

    Args:
        table: of the rows.
    """
    return map(record_of, examples_of(table))


def examples_of(table: Table) -> Iterator[Example]:
    """The well-formed rows that are checked, in order, read again.

    Args:
        table: of the rows.
    """
    for each in table.files:
        for task in tasks(each):
            for row in rows_of(task):
                example = example_of(row, task)
                if isinstance(example, Example):
                    yield example


def _chosen(table: Table) -> NDArray[np.bool_]:
    """Rows to compare: all labeled ones, or those with the lowest hashes."""
    has_label, hashes = table.column("label") != 0, table.column("prompt")
    count = int(has_label.sum())
    limit = np.partition(hashes[has_label], MOST)[MOST] if count > MOST else np.iinfo(np.uint64).max
    chosen: NDArray[np.bool_] = has_label & (hashes < limit)
    return chosen
