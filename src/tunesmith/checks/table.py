"""The columns of all rows, on disk: written part by part, so that a killed check goes on where it was."""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.near_runs import Sets
from tunesmith.checks.scan import Part
from tunesmith.checks.shingles import BANDS
from tunesmith.checks.sketch import COLUMNS
from tunesmith.data.example import Source

PARTS = "parts.jsonl"
"""One line for each part whose columns and marks are complete: what the files' sizes are after it."""


@dataclass
class Table:
    """All rows of some files that were well-formed, by index from 0, and the counts of all of their rows.

    Attributes:
        directory: of the columns and marks.
        parts: how many are complete.
        rows: that were read, malformed ones too.
        records: well-formed rows.
        counts: of marks by check.
        labels: rows by label.
        formats: by file.
    """

    directory: Path
    parts: int = 0
    rows: int = 0
    records: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    _files: list[str] = field(default_factory=list)
    _firsts: list[int] = field(default_factory=list)

    def column(self, name: str) -> NDArray[Any]:
        """A column in memory: (records,) or (records, width)."""
        kind, width = COLUMNS[name]
        values: NDArray[Any] = np.fromfile(self.directory / f"{name}.bin", kind, self.records * width)
        return values if width == 1 else values.reshape(self.records, width)

    def sets(self, view: str) -> Sets:
        """The rows as sets of shingles.

        Args:
            view: one of `VIEWS`.
        """
        shingles, bands = self._mapped(f"{view}_shingles"), self._mapped(f"{view}_bands")
        return Sets(shingles, self.column(f"{view}_counts"), bands.reshape(-1, BANDS))

    def _mapped(self, name: str) -> NDArray[np.uint32]:
        path = self.directory / f"{name}.bin"
        return np.memmap(path, np.uint32, "r") if path.stat().st_size else np.empty(0, np.uint32)

    def source(self, index: int) -> Source:
        """The file and row of a record."""
        part = bisect_right(self._firsts, index) - 1
        row = np.fromfile(self.directory / "row.bin", np.int64, 1, offset=8 * index)
        return Source(self._files[part], int(row[0]))

    def marks(self, check: str) -> Path:
        """The file of a check's marks."""
        return self.directory / f"{check}.marks.jsonl"

    def add(self, part: Part, files: "Files") -> None:
        """Append a part's columns and marks, and then that they are complete."""
        for name, array in part.sketches.arrays.items():
            files.append(f"{name}.bin", np.ascontiguousarray(array).tobytes())
        for check, lines in part.marks.items():
            files.append(self.marks(check).name, lines.encode())
        entry = {
            "file": part.file,
            "rows": part.rows,
            "records": len(part.sketches.arrays["row"]),
            "counts": part.counts,
            "labels": part.labels,
        }
        files.commit(entry)
        self._count(entry)

    def _count(self, entry: dict[str, Any]) -> None:
        self._files.append(entry["file"])
        self._firsts.append(self.records)
        self.parts += 1
        self.rows += entry["rows"]
        self.records += entry["records"]
        self.counts.update(entry["counts"])
        self.labels.update(entry["labels"])

    @classmethod
    def open(cls, directory: Path) -> "Table":
        """The table as far as it is complete; what was written after that is cut off."""
        table = cls(directory)
        directory.mkdir(parents=True, exist_ok=True)
        sizes: dict[str, int] = {}
        log = directory / PARTS
        complete = 0
        for line in log.read_bytes().splitlines(keepends=True) if log.exists() else ():
            if not line.endswith(b"\n"):
                break
            entry = json.loads(line)
            sizes = entry.pop("sizes")
            table._count(entry)
            complete += len(line)
        for path in directory.iterdir():
            size = complete if path.name == PARTS else sizes.get(path.name, 0)
            with path.open("r+b") as file:
                file.truncate(size)
        return table


class Files:
    """Files that are only appended to. Use it as a context.

    Args:
        directory: that they are in.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[str, IO[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def append(self, name: str, content: bytes) -> None:
        """Append to a file."""
        self._file(name).write(content)

    def commit(self, entry: dict[str, Any]) -> None:
        """Write the sizes of all files, after their content."""
        for file in self._open.values():
            file.flush()
        names = [path.name for path in self._directory.iterdir() if path.name != PARTS]
        sizes = {name: (self._directory / name).stat().st_size for name in names}
        log = self._file(PARTS)
        log.write(json.dumps({**entry, "sizes": sizes}).encode() + b"\n")
        log.flush()

    def _file(self, name: str) -> IO[bytes]:
        if name not in self._open:
            self._open[name] = self._stack.enter_context((self._directory / name).open("ab"))
        return self._open[name]


@dataclass(frozen=True)
class Tables:
    """What checks of all rows see.

    Attributes:
        rows: of the files that are checked.
        others: of those that they are compared with; None if there are none.
    """

    rows: Table
    others: Table | None = None


def sources(table: Table, indices: Sequence[int]) -> list[Source]:
    """The files and rows of some records."""
    return [table.source(index) for index in indices]
