"""The class of each row: its label, or its value in a column."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.curation.rows import Item, Rows
from tunesmith.data.example import Malformed
from tunesmith.data.report import Reason, Reasons

NO_VALUE = "(none)"
"""The class of rows without a value."""

MALFORMED = -1
"""Instead of the class of a row that could not be read."""


@dataclass(frozen=True)
class Classes:
    """The classes of rows.

    Attributes:
        numbers: (rows,) the class of each row as an index of `names`, or `MALFORMED`.
        names: in the order of their first rows.
        malformed: rows that could not be read, by reason.
    """

    numbers: NDArray[np.int64]
    names: tuple[str, ...]
    malformed: tuple[Reason, ...]

    @property
    def counts(self) -> NDArray[np.int64]:
        """(names,) the rows of each class."""
        return np.bincount(self.numbers[self.numbers >= 0], minlength=len(self.names))

    def by_name(self, counts: NDArray[np.int64]) -> Mapping[str, int]:
        """Counts by class, the most frequent class first.

        Args:
            counts: (names,).
        """
        order = np.argsort(-self.counts, kind="stable")
        return {self.names[each]: int(counts[each]) for each in order}


def classes_of(rows: Rows, column: str | None) -> Classes:
    """Read the class of each row.

    Args:
        rows: all rows.
        column: as in `class_of`; None: all rows are of one class.

    Raises:
        UserError: a row has no such column.
    """
    numbers, names, malformed = [], dict[str, int](), Reasons()
    for item in rows.items():
        if isinstance(item.example, Malformed):
            malformed.add(item.source, item.example.reason)
            numbers.append(MALFORMED)
        else:
            name = "rows" if column is None else class_of(item, column)
            numbers.append(names.setdefault(name, len(names)))
    return Classes(np.array(numbers, np.int64), tuple(names), malformed.by_count())


def class_of(item: Item, column: str) -> str:
    """What a row is counted as.

    Args:
        item: the row.
        column: its name; `label` is the label of the row's format, whatever the column is called.

    Raises:
        UserError: it has no such column.
    """
    record = item.record
    if column == "label" and record is not None and record.label is not None:
        return record.label
    value = item.column(column)
    return NO_VALUE if value is None else str(value)
