"""On which side of a split each row is."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.curation.chance import Hashes, mixed, shares

SIDES = ("train", "held_out", "test")

Sides = NDArray[np.int8]
"""(rows,) indices of SIDES."""

Units = NDArray[np.int64]
"""(rows,) the unit of each row; rows of one unit are on one side."""


def sides_by_hash(keys: Hashes, unit: Units, wanted: Mapping[str, float], seed: int) -> Sides:
    """Each unit's own hash decides, so that other rows have no effect on it.

    Args:
        keys: (rows,) of the rows.
        unit: of each row.
        wanted: the share of each side.
        seed: of the hash.
    """
    edges = np.array([wanted["held_out"], wanted["held_out"] + wanted["test"]])
    draws = _draws(keys, unit, seed)
    return np.array([1, 2, 0], np.int8)[np.searchsorted(edges, draws, side="right")][unit]


def sides_by_class(
    classes: NDArray[np.int64], keys: Hashes, unit: Units, wanted: Mapping[str, float], seed: int
) -> Sides:
    """Each class has the wanted shares on each side, as nearly as whole units allow. A unit with several classes counts
    for its most frequent one.

    Args:
        classes: (rows,) the number of each row's class.
        keys: (rows,) of the rows.
        unit: of each row.
        wanted: the share of each side.
        seed: of the order in which units are taken.
    """
    draws, sizes = _draws(keys, unit, seed), np.bincount(unit)
    sides = np.zeros(len(sizes), np.int8)
    for members in _by_class(classes, unit, len(sizes)):
        left = members[np.argsort(draws[members], kind="stable")].tolist()
        total = int(sizes[members].sum())
        for side in (1, 2):
            taken = _nearest(left, sizes, wanted[SIDES[side]] * total, in_order=False)
            sides[taken] = side
            left = [each for each in left if sides[each] == 0]
    return sides[unit]


def sides_by_time(times: NDArray[np.float64], unit: Units, wanted: Mapping[str, float]) -> Sides:
    """The latest units are the test side, those before are held out. A unit is as old as its first row.

    Args:
        times: (rows,) of the rows.
        unit: of each row.
        wanted: the share of each side.
    """
    sizes = np.bincount(unit)
    earliest = np.full(len(sizes), np.inf)
    np.minimum.at(earliest, unit, times)
    sides, left = np.zeros(len(sizes), np.int8), np.argsort(-earliest, kind="stable").tolist()
    for side in (2, 1):
        taken = _nearest(left, sizes, wanted[SIDES[side]] * len(unit), in_order=True)
        sides[taken] = side
        left = left[len(taken) :]
    return sides[unit]


def _draws(keys: Hashes, unit: Units, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each unit, from its smallest key."""
    smallest = np.full(int(unit.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, unit, keys)
    return shares(mixed(seed, smallest))


def _by_class(classes: NDArray[np.int64], unit: Units, count: int) -> list[NDArray[np.int64]]:
    """The units of each class."""
    pairs, rows = np.unique(np.stack([unit, classes]), axis=1, return_counts=True)
    most, order = np.zeros(count, np.int64), np.argsort(rows, kind="stable")
    most[pairs[0, order]] = pairs[1, order]
    return [np.flatnonzero(most == each) for each in np.unique(most)]


def _nearest(order: Sequence[int], sizes: NDArray[np.int64], target: float, in_order: bool) -> list[int]:
    """Units, taken as long as they bring the number of rows nearer to the target; all of them in order, or those that
    fit."""
    taken, filled = [], 0
    for each in order:
        size = int(sizes[each])
        if abs(filled + size - target) < abs(filled - target):
            taken.append(each)
            filled += size
        elif in_order:
            break
    return taken
