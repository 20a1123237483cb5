"""The rows that an act reads, as often as it needs to, each with the line that it is written as."""

import datetime
import decimal
import difflib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import Any

from tunesmith.checks.record import Record, record_of
from tunesmith.config.data import Data
from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Example, Malformed, Source
from tunesmith.data.files import DataFile, Found, find
from tunesmith.data.format_detection import chosen_format, format_of_rows
from tunesmith.data.read import Row, fingerprint, read, read_by, read_one
from tunesmith.data.reading.json_lines import parse_line
from tunesmith.data.reading.opened import BOM, COMPRESSED, opened
from tunesmith.data.row_formats import to_example
from tunesmith.errors import UserError
from tunesmith.run import Events, Subscriber

DETECT_ROWS = 100
"""Rows from which the row format is detected."""

LINES = (".jsonl", ".ndjson")
"""Extensions of files whose rows are written as they were."""

Paths = str | Path | Recipe | Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class Line:
    """A row as it is written.

    Attributes:
        index: among all rows of all files, from 0.
        source: the file and row.
        line: the row as a line of JSON: the bytes that it had in a file of JSON lines; else its columns as JSON. Empty
            for a malformed row of another file.
        before: what a file of JSON lines has between the row before and this one: blank lines, a byte order mark.
        is_ended: whether its line ended with a line feed, which only the last line of a file may lack.
        position: the byte at which the line begins, in a file of JSON lines.
        row: as read; None in a file of JSON lines, until it is parsed.
    """

    index: int
    source: Source
    line: bytes
    before: bytes
    is_ended: bool
    position: int
    row: Row | Malformed | None


@dataclass(frozen=True, slots=True)
class Item(Line):
    """A row as an act sees it.

    Attributes:
        row: as read.
        example: the row as an example.
    """

    row: Row | Malformed
    example: Example | Malformed

    @property
    def record(self) -> Record | None:
        """What checks see of it; None if it is malformed."""
        return None if isinstance(self.example, Malformed) else record_of(self.example)

    def column(self, name: str) -> Any:
        """The value in a column.

        Args:
            name: of the column.

        Raises:
            UserError: the row has no such column.
        """
        values = self.row.values if isinstance(self.row, Row) and isinstance(self.row.values, dict) else {}
        if name not in values:
            near = difflib.get_close_matches(name, map(str, values), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{self.source} has no column {name!r}; it has {', '.join(map(str, values)) or 'none'}.{hint}"
            )
        return values[name]


class Rows:
    """The rows of files, read anew at each iteration.

    Args:
        paths: files, directories and globs, as `data.train` takes them; or one recipe, whose `data.train` is read with
            its format and columns.
        subscribers: receive `progress` events, in megabytes.

    Raises:
        UserError: a path does not exist or cannot be data, or the rows have no known format.
    """

    def __init__(self, paths: Paths, subscribers: Sequence[Subscriber] = ()) -> None:
        self.data, self.formats = _data_of(paths)
        self._events = Events(*subscribers)
        self._files = {each.shown: each for each in find(self.data.train, Path.cwd()) if isinstance(each, DataFile)}
        self._marks = self._stamps()
        self.tails: dict[str, bytes] = {}
        """What each file of JSON lines has after its last row, after `items`."""

    @property
    def paths(self) -> list[str]:
        """As they are read."""
        return self.data.train

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The SHA-256 of each file, by its name."""
        return fingerprint(self.paths, Path.cwd())

    @cached_property
    def format(self) -> str:
        """The row format: the recipe's, or detected from the first rows."""
        first = [row for row in islice(read(self.paths, Path.cwd()), DETECT_ROWS) if isinstance(row, Row)]
        if self.formats is None:
            return format_of_rows(first)
        return chosen_format(first, self.data.format, self.formats, self.data.columns)

    def items(self, what: str = "reading") -> Iterator[Item]:
        """All rows, in order.

        Args:
            what: is done with them, for the progress.

        Raises:
            UserError: a file cannot be read, or has changed since it was first read.
        """
        return map(self.item, self.lines(what))

    def lines(self, what: str = "reading") -> Iterator[Line]:
        """All rows, in order; those of files of JSON lines are not parsed yet.

        Args:
            what: is done with them, for the progress.

        Raises:
            UserError: as `items`, except that a JSON list under the name of JSON lines is not noticed.
        """
        progress, numbers = _Progress(self._events, what, self.bytes), count()
        for line in read_by(partial(self._lines_of, numbers), self.paths, Path.cwd()):
            progress.add(len(line.line) + len(line.before))
            yield line
        progress.end()
        self.refuse_changed()

    def item(self, line: Line) -> Item:
        """Parse a row.

        Args:
            line: of `lines`.

        Raises:
            UserError: its file is a JSON list.
        """
        row = line.row or parse_line(line.line, line.position, line.source)
        return Item(
            line.index, line.source, line.line, line.before, line.is_ended, line.position, row, self.example(row)
        )

    def example(self, row: Row | Malformed) -> Example | Malformed:
        """A row as an example.

        Args:
            row: as read.
        """
        return row if isinstance(row, Malformed) else to_example(row, self.format, self.data.columns)

    def keeps_lines(self, name: str) -> bool:
        """Whether a file's rows are written with the bytes that they have.

        Args:
            name: of the file, as in sources.
        """
        return name in self._files and has_lines(self._files[name])

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(size for size, _ in self._marks.values())

    def refuse_changed(self) -> None:
        """Raises:
        UserError: a file has changed since it was first read.
        """
        for name, mark in self._stamps().items():
            if mark != self._marks[name]:
                raise UserError(f"{name} has changed while it was read. Try again when nothing writes it.")

    def _lines_of(self, numbers: Iterator[int], file: Found) -> Iterator[Line]:
        """The rows of one file, query or hub data set."""
        if isinstance(file, DataFile) and has_lines(file):
            yield from self._unparsed(numbers, file)
            return
        for row in read_one(file):
            line = b"" if isinstance(row, Malformed) else line_of(row)
            yield Line(next(numbers), row.source, line, b"", True, 0, row)

    def _unparsed(self, numbers: Iterator[int], file: DataFile) -> Iterator[Line]:
        """The rows of a file of JSON lines."""
        before, position = b"", 0
        with opened(file) as (stream, skipped):
            if skipped:
                before, position = BOM, skipped
            for number, line in enumerate(stream, 1):
                if line.isspace():
                    before += line
                else:
                    is_ended = line.endswith(b"\n")
                    row = line if is_ended else line + b"\n"
                    yield Line(next(numbers), Source(file.shown, number), row, before, is_ended, position, None)
                    before = b""
                position += len(line)
        self.tails[file.shown] = before

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of each file."""
        found = {}
        for file in self._files.values():
            try:
                status = file.path.stat()
            except OSError as error:
                raise UserError(f"{file.shown} cannot be read: {error.strerror}.") from None
            found[file.shown] = (status.st_size, status.st_mtime_ns)
        return found


def has_lines(file: DataFile) -> bool:
    """Whether its rows are the lines of a text file.

    Args:
        file: as found.
    """
    return file.extension in LINES and file.path.suffix.lower() in (*LINES, *COMPRESSED)


class _Progress:
    """Emits a `progress` event for each megabyte."""

    def __init__(self, events: Events, what: str, total: int) -> None:
        self._events, self._what, self._total = events, what, total >> 20
        self._bytes = 0

    def add(self, size: int) -> None:
        before, self._bytes = self._bytes >> 20, self._bytes + size
        if self._bytes >> 20 != before and self._bytes >> 20 < self._total:
            self._events.emit("progress", what=f"{self._what} (MB)", done=self._bytes >> 20, total=self._total)

    def end(self) -> None:
        self._events.emit("progress", what=f"{self._what} (MB)", done=self._total, total=self._total)


def line_of(row: Row) -> bytes:
    """A row as a line of JSON.

    Args:
        row: as read.

    Raises:
        UserError: a column holds bytes.
    """
    values = {"text": row.values} if isinstance(row.values, str) else row.values
    return (json.dumps(_plain(values, row.source), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _plain(value: Any, source: Source) -> Any:
    """JSON has no dates, which become texts (ISO 8601), and no NaN, which becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner, source) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, source) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, bytes):
        raise UserError(f"{source} holds bytes, which JSON lines cannot hold. Remove the column.")
    return value


def _data_of(paths: Paths) -> tuple[Data, Sequence[str] | None]:
    """How the paths are read, and the formats that the recipe's objective accepts, if there is a recipe."""
    recipe = paths if isinstance(paths, Recipe) else None
    given = [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)] if recipe is None else []
    if recipe is None and len(given) == 1 and Path(given[0]).suffix in (".yaml", ".yml"):
        recipe = Recipe.load(Path(given[0]))
    if recipe is not None:
        return recipe.data, recipe.objective.formats
    if not given:
        raise UserError("There is nothing to read. Name a file, or a recipe.")
    return Data(train=given), None
