"""Rows that must not be separated: with the same input, in the same group, or nearly the same."""

from array import array
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.near_runs import EVERY, Sets, mapped, similar_rows
from tunesmith.checks.shingles import BANDS, shingled
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
    The sketches are made beside what reads the texts, and are on disk.

    Args:
        directory: for the sketches; it is created.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._paths = {name: directory / f"{name}.bin" for name in ("shingles", "counts", "bands")}
        self._hashes = array("Q")
        self._waiting: list[str] = []
        self._maker = ThreadPoolExecutor(1)
        self._made: Future[None] | None = None

    def __enter__(self) -> "NearGroups":
        return self

    def __exit__(self, *error: object) -> None:
        self._maker.shutdown()

    def add(self, text: str) -> None:
        """Add a text."""
        plain = normalized(text)
        self._hashes.append(hash_of(plain))
        self._waiting.append(plain)
        if len(self._waiting) == BATCH:
            self._sketch()

    def groups(self) -> Numbers:
        """The group of each text, in the order in which they were added (texts,); nothing can be added any more."""
        self._sketch()
        self._finish()
        if not self._hashes:
            return np.empty(0, np.int64)
        hashes = np.frombuffer(self._hashes, np.uint64)
        _, first, numbers = np.unique(hashes, return_index=True, return_inverse=True)
        repeats = np.ones(len(hashes), np.bool_)
        repeats[first] = False
        counts = np.fromfile(self._paths["counts"], np.uint32)
        sets = Sets(mapped(self._paths["shingles"]), counts, mapped(self._paths["bands"]).reshape(-1, BANDS))
        pairs = similar_rows(sets, skip=repeats, given=EVERY)
        groups: Numbers = _connected(pairs.rows, pairs.others, len(hashes))[first][numbers]
        return groups

    def _sketch(self) -> None:
        """Begin with the texts that wait."""
        self._finish()
        self._made = self._maker.submit(self._write, self._waiting)
        self._waiting = []

    def _finish(self) -> None:
        if self._made is not None:
            self._made.result()

    def _write(self, texts: list[str]) -> None:
        found = shingled(texts)
        for name, path in self._paths.items():
            with path.open("ab") as file:
                getattr(found, name).tofile(file)
