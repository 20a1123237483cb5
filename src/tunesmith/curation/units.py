"""Rows that must not be separated: with the same input, in the same group, or nearly the same."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.near_runs import Sets, similar_rows
from tunesmith.checks.shingles import Shingled, shingled
from tunesmith.checks.sketch import hash_of, normalized

BATCH = 1024
"""Texts that are sketched at once."""

Numbers = NDArray[np.int64]


def units(kinds: Sequence[NDArray[np.generic]]) -> Numbers:
    """Rows that share a key of any kind, directly or through others, are one unit.

    Args:
        kinds: for each kind of key, the keys of all rows (rows,).

    Returns:
        The unit of each row (rows,), numbered from 0.
    """
    found: Numbers = np.unique(kinds[0], return_inverse=True)[1].astype(np.int64)
    for keys in kinds[1:]:
        found = _joined(found, np.unique(keys, return_inverse=True)[1])
    return found


def _joined(units: Numbers, keys: Numbers) -> Numbers:
    """Units that share a key become one."""
    first_key = int(units.max(initial=-1)) + 1
    parts = _connected(units, first_key + keys, first_key + int(keys.max(initial=-1)) + 1)[units]
    numbers: Numbers = np.unique(parts, return_inverse=True)[1].astype(np.int64)
    return numbers


def _connected(first: Numbers, second: Numbers, count: int) -> Numbers:
    """The part of each of some nodes (count,) that edges from first to second connect."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = coo_matrix((np.ones(len(first), np.int8), (first, second)), (count, count))
    parts: Numbers = connected_components(edges, directed=False)[1].astype(np.int64)
    return parts


class NearGroups:
    """Groups of texts, each of which is nearly the same as another one of its group.

    The similarity of texts that share a band of their MinHash sketches is computed exactly. Unlike the duplicates that
    a check marks, a chain of texts, each like the next, is one group: none may be separated from one that is like it.
    """

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._waiting: list[str] = []
        self._parts: list[Shingled] = []

    def add(self, text: str) -> int:
        """Add a text.

        Args:
            text: any.

        Returns:
            Its number; those that differ in case and white space alone have the same.
        """
        plain = normalized(text)
        key = hash_of(plain)
        if key not in self._known:
            self._known[key] = len(self._known)
            self._waiting.append(plain)
            if len(self._waiting) == BATCH:
                self._sketch()
        return self._known[key]

    def groups(self) -> Numbers:
        """The group of each number (numbers,)."""
        self._sketch()
        count = len(self._known)
        if not count:
            return np.empty(0, np.int64)
        shingles, counts, bands = (
            np.concatenate([getattr(part, name) for part in self._parts]) for name in ("shingles", "counts", "bands")
        )
        # Each text once to look up and once to be found: so it is compared with all others, not with representatives.
        twice = Sets(*(np.concatenate([array, array]) for array in (shingles, counts, bands)))
        pairs = similar_rows(twice, given=count)
        return _connected(pairs.rows - count, pairs.others, count)

    def _sketch(self) -> None:
        if self._waiting:
            self._parts.append(shingled(self._waiting))
            self._waiting = []
