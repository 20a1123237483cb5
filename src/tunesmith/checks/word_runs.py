"""Runs of words that two texts have in common: how contamination by benchmarks is found (Brown et al. 2020, app. C).

A run is 13 words long. A run that stands in more than ten rows of the other files is a template of theirs, and not
counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks import native
from tunesmith.checks.shingles import FACTORS, WORD, encoded, kinds, word_hashes

RUN = 13
"""Words of a run."""

TEMPLATE = 10
"""Rows of the other files in which a run may stand."""


@dataclass(frozen=True)
class KnownRuns:
    """The runs of other rows.

    Attributes:
        runs: (runs,) uint64, sorted, each once.
        rows: (runs,) int64: the first row with it, by index among the other rows.
    """

    runs: NDArray[np.uint64]
    rows: NDArray[np.int64]

    def shared(self, texts: Sequence[str]) -> list[tuple[int, int, str]]:
        """The first run of each text that another row has.

        Args:
            texts: as `normalized` returns them.

        Returns:
            (index of the text, index of the other row, the run's words), in order; of the texts that have one.
        """
        runs, counts = word_runs(texts)
        places = np.searchsorted(self.runs, runs)
        if not len(self.runs):
            return []
        known = np.flatnonzero(self.runs[np.minimum(places, len(self.runs) - 1)] == runs)
        ends = np.cumsum(counts, dtype=np.int64)
        found: dict[int, tuple[int, int, str]] = {}
        for at in known:
            text = int(np.searchsorted(ends, at, "right"))
            if text not in found:
                start = int(at) - int(ends[text] - counts[text])
                words = WORD.findall(texts[text])[start : start + RUN]
                found[text] = (text, int(self.rows[places[at]]), " ".join(words))
        return list(found.values())


def known_runs(runs: NDArray[np.uint64], counts: NDArray[np.uint32]) -> KnownRuns:
    """The runs of other rows, without those of templates.

    Args:
        runs: of all of them, one row after the other.
        counts: (rows,): how many each row has.
    """
    rows = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((rows, runs))
    runs, rows = runs[order], rows[order]
    is_new = np.ones(len(runs), bool)
    is_new[1:] = (runs[1:] != runs[:-1]) | (rows[1:] != rows[:-1])
    runs, rows = runs[is_new], rows[is_new]
    values, first, times = np.unique(runs, return_index=True, return_counts=True)
    kept = times <= TEMPLATE
    return KnownRuns(values[kept], rows[first[kept]])


def word_runs(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Hashes of the runs of words of all texts, and how many each has.

    Args:
        texts: as `normalized` returns them.
    """
    if native.library() is None or not texts:
        return by_definition(texts)
    content, offsets, longest = encoded(texts)
    runs, counts = np.empty(len(content) + 1, np.uint64), np.empty(len(texts), np.uint32)
    spare = np.empty(longest + 1, np.uint32)
    total = native.call("word_runs", content, offsets, len(texts), kinds(), RUN, runs, counts, spare)
    return runs[:total].copy(), counts


def by_definition(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """As `word_runs`, with NumPy."""
    found = [_runs(np.array(word_hashes(text), np.uint64)) for text in texts]
    counts = np.array([len(each) for each in found], np.uint32)
    return np.concatenate([np.empty(0, np.uint64), *found]), counts


def _runs(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    count = max(0, len(words) - RUN + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(RUN):
        hashes = hashes * FACTORS[0] + words[place : place + count]
    return (hashes ^ (hashes >> np.uint64(32))) * FACTORS[3]
