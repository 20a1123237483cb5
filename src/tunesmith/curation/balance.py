"""`tunesmith data balance`: classes with more equal numbers of rows, by leaving rows out and by repeating rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tunesmith.curation.chance import mixed
from tunesmith.curation.chosen import write_chosen
from tunesmith.curation.classes import MALFORMED, classes_of
from tunesmith.curation.origin import claimed
from tunesmith.curation.rows import Paths, Rows
from tunesmith.data.report import Reason
from tunesmith.errors import UserError
from tunesmith.run import Subscriber

Size = Literal["smallest", "median", "largest"]

MANY = 10_000
"""Values of a column from which it is no class."""


@dataclass(frozen=True)
class Balance:
    """What `data_balance` wrote.

    Attributes:
        file: with the rows.
        rows: in it.
        target: the rows that each class should have.
        before: rows of each class that were read, the largest class first.
        after: rows of each class that were written.
        different: of these, rows that are no copies.
        malformed: rows that could not be read and are left out, by reason.
    """

    file: Path
    rows: int
    target: int
    before: Mapping[str, int]
    after: Mapping[str, int]
    different: Mapping[str, int]
    malformed: tuple[Reason, ...]


def data_balance(
    paths: Paths,
    output: str | Path,
    *,
    by: str = "label",
    to: int | Size = "median",
    most_copies: int = 4,
    seed: int = 0,
    subscribers: Sequence[Subscriber] = (),
) -> Balance:
    """Bring classes to the same number of rows, where the rows allow it.

    A class with more rows keeps a random part of them. A class with fewer repeats all of its rows equally often, and a
    random part once more.

    Args:
        paths: files, as `data.train` takes them, or a recipe.
        output: the file to write; it must not exist.
        by: `label`, or a column.
        to: the number of rows for each class, or that of the smallest, the median or the largest class.
        most_copies: of a row; 1 repeats none. A model that sees a row too often learns it by heart.
        seed: of what is random.
        subscribers: receive `progress` events.

    Returns:
        The counts.

    Raises:
        UserError: the rows cannot be read or have no such column, or the output exists.
    """
    target = Path(output)
    with claimed(target):
        rows = Rows(paths, subscribers)
        classes = classes_of(rows, by)
        counts = classes.counts
        if not len(counts):
            raise UserError("None of the rows can be read, so there is nothing to balance.")
        if len(counts) > MANY:
            raise UserError(
                f"{by} has {len(counts):,} different values, so it is no class. Name another column with --by."
            )
        size = _size(to, counts)
        copies = _copies(classes.numbers, counts, size, most_copies, seed)
        per_row = np.where(classes.numbers == MALFORMED, 0, copies)
        after = np.bincount(classes.numbers[classes.numbers >= 0], per_row[classes.numbers >= 0], len(counts))
        different = np.bincount(classes.numbers[per_row > 0], minlength=len(counts))
        before, written, distinct = (classes.by_name(each.astype(np.int64)) for each in (counts, after, different))
        settings = {"by": by, "to": to, "most_copies": most_copies, "seed": seed}
        outcome = {"target": size, "before": before, "after": written, "different": distinct}
        total = write_chosen(rows, target, per_row, "balance", settings, outcome)
        return Balance(target, total, size, before, written, distinct, classes.malformed)


def _size(to: int | str, counts: NDArray[np.int64]) -> int:
    if isinstance(to, int):
        if to < 1:
            raise UserError(f"{to} is no number of rows for a class. Give 1 or more.")
        return to
    sizes = {"smallest": counts.min(), "median": np.median(counts), "largest": counts.max()}
    if to not in sizes:
        raise UserError(f"{to} is neither a number of rows nor one of {', '.join(get_args(Size))}.")
    return max(1, int(sizes[to]))


def _copies(
    classes: NDArray[np.int64], counts: NDArray[np.int64], size: int, most_copies: int, seed: int
) -> NDArray[np.int64]:
    """How often each row is written (rows,)."""
    draws = mixed(seed, np.arange(len(classes), dtype=np.uint64))
    copies = np.zeros(len(classes), np.int64)
    for number, count in enumerate(counts.tolist()):
        members = np.flatnonzero(classes == number)
        wanted = min(size, count * most_copies)
        copies[members] = wanted // count
        copies[members[np.argsort(draws[members], kind="stable")[: wanted % count]]] += 1
    return copies
