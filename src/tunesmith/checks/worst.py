"""How bad each row is by all checks: how many mark it, and how severe they are."""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.check import Severity
from tunesmith.checks.result import DataChecks
from tunesmith.data.example import Source

BITS = 20
"""Of a count of checks of one severity, and of a file's number below a row's."""

WEIGHTS: dict[Severity, int] = {"error": 1 << 2 * BITS, "warning": 1 << BITS, "note": 1}
"""Of a check: an error is worse than any number of warnings, and a warning than any number of notes."""


@dataclass(frozen=True)
class Counts:
    """Checks that mark a row, by severity."""

    errors: int
    warnings: int
    notes: int


class WorstRows:
    """The rows that checks mark, in 16 bytes for each mark.

    Args:
        found: by the checks.
    """

    def __init__(self, found: DataChecks) -> None:
        self._files = {name: number for number, name in enumerate(found.files)}
        rows, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for result in found.results:
            marked = np.unique(np.array(array("q", (self._place(mark.source) for mark in result.marks)), np.int64))
            rows.append(marked)
            weights.append(np.full(len(marked), WEIGHTS[result.severity], np.int64))
        self._rows, inverse = np.unique(np.concatenate(rows), return_inverse=True)
        self._badness: NDArray[np.int64] = np.zeros(len(self._rows), np.int64)
        np.add.at(self._badness, inverse, np.concatenate(weights))

    def __len__(self) -> int:
        return len(self._rows)

    def badness(self, row: Source) -> int:
        """A number that is higher for a worse row; 0 if no check marks it.

        Args:
            row: of a file that was checked.
        """
        at = int(np.searchsorted(self._rows, place := self._place(row)))
        return int(self._badness[at]) if at < len(self._rows) and self._rows[at] == place else 0

    def counts(self, row: Source) -> Counts:
        """How many checks of each severity mark a row.

        Args:
            row: as in `badness`.
        """
        badness, most = self.badness(row), (1 << BITS) - 1
        return Counts(badness >> 2 * BITS, badness >> BITS & most, badness & most)

    def _place(self, row: Source) -> int:
        return row.row << BITS | self._files.get(row.file, (1 << BITS) - 1)
