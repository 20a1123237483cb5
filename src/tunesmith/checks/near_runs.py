"""Pairs of similar rows among very many: candidates by MinHash bands, each verified by its exact Jaccard similarity.

For each of the 24 bands, the rows are sorted by it; rows with the same band make a run. Within a run, in the order of
the rows, each is compared with the run's representatives: its rows that are similar to no representative before them.
So a run of n copies of one text costs n comparisons, not n². At most `REPRESENTATIVES` of a run are compared with: more
of them have a band in common and are not similar only where most of every row is the same template.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks import native
from tunesmith.checks.shingles import BANDS, SIMILAR

REPRESENTATIVES = 1024
"""Rows of a run that others are compared with."""

EVERY = -1
"""In place of the number of given rows: each row is compared with all before it, and not with representatives only."""

ROOM = 1 << 16
"""Pairs that a kernel returns at once, at first."""

PIECE = 1 << 16
"""Rows whose bands are read at once."""

SLICE = 1 << 11
"""Rows, in runs, that are compared before the memory of what was read is given back: for each, Linux maps 64 KB."""

MOST = 1 << 20
"""Pairs that are gathered before those that are the same are merged."""

_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
"""Two numbers of 32 bits are packed into one of 64, which sorts faster than two columns."""


@dataclass(frozen=True)
class Sets:
    """The rows as sets of shingles.

    Attributes:
        shingles: (all,) uint32, usually a file that is mapped into memory.
        counts: (rows,) uint32: how many each row has, one row after the other.
        bands: (rows, BANDS) uint32, too.
    """

    shingles: NDArray[np.uint32]
    counts: NDArray[np.uint32]
    bands: NDArray[np.uint32]

    def forget(self) -> None:
        """Give the memory of the mapped files back to the system."""
        for array in (self.shingles, self.bands):
            mapped = getattr(array, "_mmap", None)
            if mapped is not None:
                with suppress(AttributeError, OSError):  # not on this system
                    mapped.madvise(mmap.MADV_DONTNEED)


def mapped(path: Path) -> NDArray[np.uint32]:
    """A file as an array in which only what is read is in memory; empty if there is no file, or nothing in it.

    Args:
        path: of numbers, uint32.
    """
    has_content = path.exists() and path.stat().st_size
    return np.memmap(path, np.uint32, "r") if has_content else np.empty(0, np.uint32)


@dataclass(frozen=True)
class Pairs:
    """Similar rows.

    Attributes:
        rows: (pairs,) ascending.
        others: (pairs,): of each, an earlier row.
        similarities: (pairs,): Jaccard similarities.
    """

    rows: NDArray[np.int64]
    others: NDArray[np.int64]
    similarities: NDArray[np.float64]


def similar_rows(sets: Sets, least: float = SIMILAR, skip: NDArray[np.bool_] | None = None, given: int = 0) -> Pairs:
    """Pairs of rows that are similar, each with representatives of the runs that it is in.

    Args:
        sets: of the rows.
        least: the similarity from which a pair is returned.
        skip: (rows,): rows that are not compared.
        given: if positive, the rows from this one on are compared only with those before it, and with all of them; or
            `EVERY`.
    """
    starts = np.empty(len(sets.counts) + 1, np.int64)
    starts[0] = 0
    np.cumsum(sets.counts, dtype=np.int64, out=starts[1:])
    compared = sets.counts > 0
    if skip is not None:
        compared &= ~skip
    find = _by_kernel if native.library() is not None else by_definition
    packed, similarities = np.empty(0, np.uint64), np.empty(0)
    more: list[Found] = []
    for band in range(BANDS):
        for keys, order in _slices(*_runs(sets, band, compared)):
            for found in find(keys, order, sets, starts, least, given):
                more.append(found)
                if sum(len(each[0]) for each in more) > MOST:
                    packed, similarities = _merged(packed, similarities, more)
                    more = []
            sets.forget()
        packed, similarities = _merged(packed, similarities, more)
        more = []
    return Pairs((packed >> _HALF).astype(np.int64), (packed & _LOW).astype(np.int64), similarities)


def _merged(
    packed: NDArray[np.uint64], similarities: NDArray[np.float64], more: Sequence["Found"]
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """The pairs, sorted, each once, with those that were found since."""
    pairs = [packed, *((rows.astype(np.uint64) << _HALF) | others.astype(np.uint64) for rows, others, _ in more)]
    packed, first = np.unique(np.concatenate(pairs), return_index=True)
    return packed, np.concatenate([similarities, *(each[2] for each in more)])[first]


def representatives(pairs: Pairs) -> Iterator[tuple[int, int, float]]:
    """Rows that are similar to an earlier row that is itself kept, with the most similar such row.

    So no chain of rows, each similar to the next, leads from a row to its representative (no transitive closure).

    Args:
        pairs: from `similar_rows`.
    """
    marked: set[int] = set()
    bounds = np.flatnonzero(np.diff(pairs.rows, prepend=-1, append=-1))
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        best = max(
            ((pairs.similarities[at], -int(pairs.others[at])) for at in range(start, end)
             if int(pairs.others[at]) not in marked),
            default=None,
        )  # fmt: skip
        if best is not None:
            row = int(pairs.rows[start])
            marked.add(row)
            yield row, -best[1], float(best[0])


def _runs(sets: Sets, band: int, compared: NDArray[np.bool_]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The keys and rows that share a band with another row, sorted by both."""
    packed = np.empty(int(np.count_nonzero(compared)), np.uint64)
    count = 0
    for start in range(0, len(compared), PIECE):
        rows = np.flatnonzero(compared[start : start + PIECE]) + start
        packed[count : count + len(rows)] = (sets.bands[rows, band].astype(np.uint64) << _HALF) | rows.astype(np.uint64)
        count += len(rows)
        sets.forget()
    packed.sort()
    shared = [np.empty(0, np.uint64)]
    for start in range(0, count, PIECE):  # with one row on each side
        piece = packed[max(0, start - 1) : start + PIECE + 1]
        is_next = piece[1:] >> _HALF == piece[:-1] >> _HALF
        is_shared = np.zeros(len(piece), np.bool_)
        is_shared[1:] |= is_next
        is_shared[:-1] |= is_next
        own = slice(min(start, 1), min(start, 1) + PIECE)
        shared.append(piece[own][is_shared[own]])
    found = np.concatenate(shared)
    return (found >> _HALF).astype(np.uint32), (found & _LOW).astype(np.int64)


def _slices(
    keys: NDArray[np.uint32], order: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.int64]]]:
    """Some whole runs at a time: the parts of files that they read are in memory together."""
    start = 0
    while start < len(keys):
        end = int(np.searchsorted(keys, keys[min(start + SLICE, len(keys)) - 1], "right"))
        yield keys[start:end], order[start:end]
        start = end


Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def _by_kernel(
    keys: NDArray[np.uint32], order: NDArray[np.int64], sets: Sets, starts: NDArray[np.int64], least: float, given: int
) -> Iterator[Found]:
    place, room = np.zeros(1, np.int64), ROOM
    while place[0] < len(order):
        rows, others, similarities = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room)
        count = native.call(
            "near_runs",
            *(keys, order, len(order), given, sets.shingles, starts, sets.counts, least),
            *(place, room, rows, others, similarities),
        )
        if count < 0:
            room *= 4
        else:
            yield rows[:count], others[:count], similarities[:count]


def by_definition(
    keys: NDArray[np.uint32], order: NDArray[np.int64], sets: Sets, starts: NDArray[np.int64], least: float, given: int
) -> Iterator[Found]:
    """As the kernel, with NumPy: the similar pairs of all runs.

    Args:
        keys: (rows of all runs,) the band that a run has in common; runs follow one another.
        order: (rows of all runs,) the rows, ascending within a run.
        sets: of all rows.
        starts: (all rows,) where the shingles of each begin.
        least: the similarity from which a pair is returned.
        given: as `similar_rows` takes it.

    Returns:
        Of each run that has some: the later rows (pairs,), the earlier ones (pairs,), and their similarities (pairs,).
    """

    def elements(row: int) -> NDArray[np.uint32]:
        return sets.shingles[starts[row] : starts[row] + sets.counts[row]]

    bounds = np.flatnonzero(np.diff(keys.astype(np.int64), prepend=-1, append=-1))
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        found = list(_in_run(order[start:end].tolist(), elements, least, given))
        if found:
            rows, others, similarities = zip(*found, strict=True)
            yield np.array(rows, np.int64), np.array(others, np.int64), np.array(similarities)


def _in_run(
    run: list[int], elements: Callable[[int], NDArray[np.uint32]], least: float, given: int
) -> Iterator[tuple[int, int, float]]:
    kept: list[int] = []
    for row in run:
        near = [(row, other, jaccard(elements(row), elements(other))) for other in kept if row >= given]
        near = [pair for pair in near if pair[2] >= least]
        yield from near
        is_kept = given == EVERY or (not near and (row < given or not given))
        if is_kept and len(kept) < REPRESENTATIVES:
            kept.append(row)


def jaccard(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    """|A ∩ B| / |A ∪ B|.

    Args:
        first: sorted, each element once.
        second: the same.
    """
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)
