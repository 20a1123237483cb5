"""The columns of all rows, on disk: written part by part, so that a killed check continues with the next part."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.appended import Appended, cut_to_complete, entries_of
from tunesmith.checks.inputs import Input
from tunesmith.checks.models import Models
from tunesmith.checks.near_runs import Sets, mapped
from tunesmith.checks.scan import Part
from tunesmith.checks.shingles import BANDS
from tunesmith.checks.sketch import COLUMNS
from tunesmith.data.example import Source
from tunesmith.run import Events

DIFFERENT = 50_000
"""Different labels, and openings of answers, that are counted."""


@dataclass
class Table:
    """The well-formed rows, by index from 0: first those of other files, then those that are checked.

    Attributes:
        directory: of the columns and marks.
        parts: how many are complete.
        given: rows of the other files.
        records: of the files that are checked.
        rows: of the files that are checked, malformed ones too.
        counts: of marks by check.
        labels: rows that are checked, by label.
        openings: rows that are checked, by the first words of their answer.
        tokens, loss_tokens: of the rows that are checked, as a recipe renders them; 0 without one.
        files: that are checked, to read rows again.
        models: that some checks need.
        groups: (dimension, group) of each bit of the column `groups`.
        events: receive `progress`.
        about: what checks say of the whole set, in a sentence or two, by name.
    """

    directory: Path
    parts: int = 0
    given: int = 0
    records: int = 0
    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    loss_tokens: int = 0
    files: Sequence[Input] = ()
    models: Models = field(default_factory=Models)
    groups: tuple[tuple[str, str], ...] = ()
    events: Events = field(default_factory=Events)
    about: dict[str, str] = field(default_factory=dict)
    _files: list[str] = field(default_factory=list)
    _firsts: list[int] = field(default_factory=list)

    @property
    def rows_by_file(self) -> dict[str, int]:
        """Well-formed rows of each file that is checked."""
        firsts = np.array([*self._firsts, self.given + self.records])
        counts: Counter[str] = Counter()
        for file, first, end in zip(self._files, firsts, firsts[1:], strict=False):
            if first >= self.given:
                counts[file] += int(end - first)
        return dict(counts)

    def column(self, name: str) -> NDArray[Any]:
        """A column of the rows that are checked, in memory: (records,).

        Args:
            name: one of `COLUMNS` with one value a row.
        """
        return self._read(name, self.given, self.records)

    def column_of_all(self, name: str) -> NDArray[Any]:
        """A column with the rows of the other files first: (given + records,)."""
        return self._read(name, 0, self.given + self.records)

    def sets(self, view: str) -> Sets:
        """The rows that are checked as sets of shingles.

        Args:
            view: one of `VIEWS`.
        """
        every = self.sets_of_all(view)
        others = int(every.counts[: self.given].sum(dtype=np.int64))
        return Sets(every.shingles[others:], every.counts[self.given :], every.bands[self.given :])

    def sets_of_all(self, view: str) -> Sets:
        """As `sets`, with the rows of the other files first."""
        shingles, bands = (mapped(self.directory / f"{view}_{name}.bin") for name in ("shingles", "bands"))
        return Sets(shingles, self.column_of_all(f"{view}_counts"), bands.reshape(-1, BANDS))

    def source(self, index: int) -> Source:
        """The file and row of a row that is checked."""
        return self.source_of_all(self.given + index)

    def source_of_all(self, index: int) -> Source:
        """As `source`, counted from the first row of the other files."""
        part = bisect_right(self._firsts, index) - 1
        row = np.fromfile(self.directory / "row.bin", np.int64, 1, offset=8 * index)
        return Source(self._files[part], int(row[0]))

    def marks(self, check: str) -> Path:
        """The file of a check's marks."""
        return self.directory / f"{check}.marks.jsonl"

    def add(self, part: Part, files: Appended) -> None:
        """Append a part's columns and marks, and then that they are complete.

        Args:
            part: from a worker, in order.
            files: of the directory.
        """
        for name, array in part.arrays.items():
            files.append(f"{name}.bin", np.ascontiguousarray(array).tobytes())
        for check, lines in part.marks.items():
            files.append(self.marks(check).name, lines.encode())
        entry = {
            "file": part.file,
            "is_other": part.is_other,
            "rows": part.rows,
            "records": len(part.arrays["row"]),
            "counts": part.counts,
            "labels": part.labels,
            "openings": part.openings,
            "tokens": part.tokens,
            "loss_tokens": part.loss_tokens,
        }
        files.commit(entry)
        self._count(entry)

    def _count(self, entry: dict[str, Any]) -> None:
        self._files.append(entry["file"])
        self._firsts.append(self.given + self.records)
        self.parts += 1
        if entry["is_other"]:
            self.given += entry["records"]
            return
        self.rows += entry["rows"]
        self.records += entry["records"]
        self.tokens += entry["tokens"]
        self.loss_tokens += entry["loss_tokens"]
        self.counts.update(entry["counts"])
        for name in ("labels", "openings"):
            known: Counter[str] = getattr(self, name)
            known.update(entry[name])
            if len(known) > DIFFERENT:  # those that are frequent in the set are so in its parts
                setattr(self, name, Counter(dict(known.most_common(DIFFERENT // 2))))

    def _read(self, name: str, first: int, count: int) -> NDArray[Any]:
        """A column has no file before a row is added."""
        kind = COLUMNS[name][0]
        if not count:
            return np.empty(0, kind)
        return np.fromfile(self.directory / f"{name}.bin", kind, count, offset=first * np.dtype(kind).itemsize)

    @classmethod
    def read(cls, directory: Path) -> "Table":
        """The table of a check that is done, only to be read.

        Args:
            directory: of the columns and marks.
        """
        table = cls(directory)
        for entry in entries_of(directory):
            table._count(entry)
        return table

    @classmethod
    def open(cls, directory: Path) -> "Table":
        """The table as far as it is complete; what was written after that is cut off."""
        table = cls(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for entry in cut_to_complete(directory):
            table._count(entry)
        return table
