"""Rows that must not be separated: with the same input, in the same group, or nearly the same."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.near_runs import jaccard
from tunesmith.checks.shingles import SIMILAR, shingled
from tunesmith.checks.sketch import normalized

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
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first_key = int(units.max(initial=-1)) + 1
    nodes = first_key + int(keys.max(initial=-1)) + 1
    edges = coo_matrix((np.ones(len(units), np.int8), (units, first_key + keys)), (nodes, nodes))
    parts: Numbers = connected_components(edges, directed=False)[1][units]
    numbers: Numbers = np.unique(parts, return_inverse=True)[1].astype(np.int64)
    return numbers


class NearGroups:
    """Groups of texts, each of which is nearly the same as another one of its group.

    The similarity of two texts that have candidates in common by MinHash is computed exactly. A chain of texts, each
    like the next, is one group, as it has to be where no text may be separated from one that is like it.
    """

    def __init__(self, least: float = SIMILAR) -> None:
        self._least = least
        self._parents: list[int] = []
        self._sets: list[NDArray[np.uint32]] = []
        self._known: dict[bytes, int] = {}
        self._buckets: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def add(self, text: str) -> int:
        """Add a text.

        Args:
            text: any.

        Returns:
            Its number; equal ones have the same.
        """
        found = shingled([normalized(text)])
        elements, bands = found.shingles, found.bands[0]
        key = elements.tobytes()
        if key in self._known:
            return self._known[key]
        number = self._known[key] = len(self._sets)
        self._sets.append(elements)
        self._parents.append(number)
        for other in self._candidates(number, elements, bands):
            if self.group(other) != self.group(number) and jaccard(elements, self._sets[other]) >= self._least:
                self._parents[self.group(other)] = self.group(number)
        return number

    def group(self, number: int) -> int:
        """The group of a text.

        Args:
            number: of the text, as `add` returns it.
        """
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def _candidates(self, number: int, elements: NDArray[np.uint32], bands: NDArray[np.uint32]) -> Iterator[int]:
        """Texts that share a band and whose size allows the similarity, once each."""
        seen: set[int] = set()
        for key in enumerate(bands.tolist()):
            bucket = self._buckets[key]
            for other in bucket:
                if other not in seen:
                    seen.add(other)
                    sizes = sorted((len(elements), len(self._sets[other])))
                    if sizes[0] >= self._least * sizes[1]:
                        yield other
            bucket.append(number)
