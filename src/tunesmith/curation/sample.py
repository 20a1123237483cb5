"""`tunesmith data sample`: some rows to look at."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.curation.chance import mixed
from tunesmith.curation.chosen import write_chosen
from tunesmith.curation.classes import Classes, classes_of
from tunesmith.curation.origin import claimed
from tunesmith.curation.rows import Paths, Rows
from tunesmith.data.report import Reason
from tunesmith.errors import UserError
from tunesmith.run import Subscriber


@dataclass(frozen=True)
class Sample:
    """What `data_sample` wrote.

    Attributes:
        file: with the rows.
        rows: in it.
        read: rows that it was drawn from.
        classes: rows in it by class, if it is stratified.
        malformed: rows that could not be read, by reason.
    """

    file: Path
    rows: int
    read: int
    classes: Mapping[str, int]
    malformed: tuple[Reason, ...]


def data_sample(
    paths: Paths,
    rows: int,
    output: str | Path,
    *,
    stratify: str | None = None,
    seed: int = 0,
    subscribers: Sequence[Subscriber] = (),
) -> Sample:
    """Draw rows without repetition, and write them in the order of the files.

    Args:
        paths: files, as `data.train` takes them, or a recipe.
        rows: how many; all, if there are fewer.
        output: the file to write; it must not exist.
        stratify: `label`, or a column: each of its values has its share of the sample, and at least one row if there
            are enough.
        seed: of the draw.
        subscribers: receive `progress` events.

    Returns:
        The counts.

    Raises:
        UserError: the rows cannot be read or have no such column, or the output exists.
    """
    target = Path(output)
    with claimed(target):
        if rows < 1:
            raise UserError(f"{rows} is no number of rows to draw. Give 1 or more.")
        source = Rows(paths, subscribers)
        classes = classes_of(source, stratify)
        copies, quotas = drawn(classes, rows, seed)
        by_class = {} if stratify is None else classes.by_name(quotas)
        settings = {"rows": rows, "stratify": stratify, "seed": seed}
        written = write_chosen(source, target, copies, "sample", settings, {"classes": by_class})
        return Sample(target, written, len(classes.numbers), by_class, classes.malformed)


def drawn(classes: Classes, rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw rows of each class.

    Args:
        classes: of the rows.
        rows: how many, at most.
        seed: of the draw.

    Returns:
        (rows,) 1 for a drawn row; (classes,) how many of each class.
    """
    quotas = _quotas(classes.counts, min(rows, int(classes.counts.sum())))
    draws = mixed(seed, np.arange(len(classes.numbers), dtype=np.uint64))
    copies = np.zeros(len(classes.numbers), np.int64)
    for number, quota in enumerate(quotas.tolist()):
        members = np.flatnonzero(classes.numbers == number)
        copies[members[np.argsort(draws[members], kind="stable")[:quota]]] = 1
    return copies, quotas


def _quotas(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Rows of each class, one each first if there are enough, the others by the method of Webster (Sainte-Laguë)."""
    quotas = np.ones(len(counts), np.int64) if total >= len(counts) else np.zeros(len(counts), np.int64)
    waiting = [
        ((2 * quota + 1) / count, number) for number, (quota, count) in enumerate(zip(quotas, counts, strict=True))
    ]
    heapq.heapify(waiting)
    left = total - int(quotas.sum())
    while left and waiting:
        _, number = heapq.heappop(waiting)
        if quotas[number] < counts[number]:
            quotas[number] += 1
            left -= 1
            heapq.heappush(waiting, ((2 * quotas[number] + 1) / counts[number], number))
    return quotas
