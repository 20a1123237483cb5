"""A file to which rows are appended, one line each, so that it is whole whenever the process ends."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from tunesmith.data.example import Malformed, Row
from tunesmith.data.read import read
from tunesmith.errors import UserError
from tunesmith.run import writing
from tunesmith.run_lock import output_lock

Entry = TypeVar("Entry")


class AppendedRows(Generic[Entry]):
    """A file of rows that people add to.

    Args:
        path: of the file.
        size: of what it has, in bytes.
        entries: that it has.
        values: a row's columns.
    """

    def __init__(
        self, path: Path, size: int, entries: list[Entry], values: Callable[[Entry], Mapping[str, Any]]
    ) -> None:
        self.path, self.entries = path, entries
        self._ends, self._values = [size], values

    @classmethod
    @contextmanager
    def opened(
        cls, path: Path, of: Callable[[Row | Malformed], Entry], values: Callable[[Entry], Mapping[str, Any]]
    ) -> Iterator["AppendedRows[Entry]"]:
        """Within the context nothing else writes the file. A last line that was cut off is removed.

        Args:
            path: of the file, which need not exist.
            of: reads a row.
            values: a row's columns.

        Raises:
            UserError: it cannot be written, another process writes it, or as `of` raises.
        """
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with output_lock(path):
            entries: list[Entry] = []
            if path.exists():
                with writing(path):
                    _remove_cut_line(path)
                if path.stat().st_size:
                    entries = [of(row) for row in read([str(path)], Path.cwd())]
            yield cls(path, path.stat().st_size if path.exists() else 0, entries, values)

    def append(self, entry: Entry) -> None:
        """Write a row, which is on the disk when this returns.

        Args:
            entry: the next one.

        Raises:
            UserError: the file cannot be written.
        """
        line = (json.dumps(self._values(entry), ensure_ascii=False) + "\n").encode()
        with writing(self.path), self.path.open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())
        self._ends.append(self._ends[-1] + len(line))
        self.entries.append(entry)

    def pop(self) -> None:
        """Remove the last row that was appended.

        Raises:
            UserError: the file cannot be written.
        """
        with writing(self.path):
            os.truncate(self.path, self._ends[-2])
        self._ends.pop()
        self.entries.pop()


def values_of(row: Row | Malformed) -> Mapping[str, Any]:
    """The columns of a row of such a file; none if it is no object.

    Args:
        row: as read.

    Raises:
        UserError: it cannot be read.
    """
    if isinstance(row, Malformed):
        raise UserError(f"{row.source}: {row.reason}. Remove the row.")
    return row.values if isinstance(row.values, dict) else {}


def _remove_cut_line(path: Path) -> None:
    """Cut a file after its last line feed: what follows was not written to its end. A whole row that only lacks its
    line feed, as an editor leaves it, gets one."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    try:
        json.loads(content[end:])
    except ValueError:
        os.truncate(path, end)
        return
    with path.open("ab") as file:
        file.write(b"\n")
