"""From the paths to check to tasks: pieces of files that workers read and check."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

from tunesmith.checks.fingerprints import Fingerprint, fingerprint
from tunesmith.data.example import Malformed, Source
from tunesmith.data.files import DataFile, Found, find
from tunesmith.data.format_detection import chosen_format, format_of_rows
from tunesmith.data.read import Row, identity, read_lines, read_one
from tunesmith.errors import UserError

DETECT_ROWS = 100
"""Rows whose columns decide the format."""

ROWS = 1024
"""Rows of a task, of a file that one process must read."""

LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a file become examples.

    Attributes:
        format: the row format; empty if no row could be read.
        columns: field → column, from `data.columns`.
    """

    format: str
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Input:
    """A file or hub data set to check.

    Attributes:
        file: as found.
        print: of its content; None for a hub data set.
        key: what identifies its content.
        layout: of its rows.
        is_other: whether others are compared with it, and it is not checked itself.
        held_out: the share of its rows that is held out.
    """

    file: Found
    print: Fingerprint | None
    key: str
    layout: Layout
    is_other: bool = False
    held_out: float = 0.0

    @property
    def name(self) -> str:
        """As sources have it."""
        return self.file.shown if isinstance(self.file, DataFile) else str(self.file)


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of a file, to be read by the worker."""

    file: DataFile
    start: int
    end: int
    number: int


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work: rows to check.

    Attributes:
        file: its name.
        layout: of its rows.
        rows: the rows, or where they are.
        size: bytes of the file, for progress; 0 if it is not known.
        is_other: whether others are compared with them, and they are not checked themselves.
        held_out: the share of the file's rows that is held out.
    """

    file: str
    layout: Layout
    rows: Sequence[Row | Malformed] | Lines
    size: int
    is_other: bool = False
    held_out: float = 0.0


def inputs(
    paths: Sequence[str],
    base_dir: Path,
    format: str = "auto",
    formats: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> list[Input]:
    """The files to check, each with its fingerprint and its format.

    Args:
        paths: as `data.train` takes them.
        base_dir: the directory that relative paths start from.
        format: `data.format`.
        formats: that the objective accepts.
        columns: field → column.

    Raises:
        UserError: a path does not exist, or the rows of a file are in no known format.
    """
    return [_input(file, format, formats, columns or {}) for file in find(paths, base_dir)]


def tasks(each: Input) -> Iterator[Task]:
    """The pieces of an input, in order. What stops the reading of a file is the last piece's malformed row."""
    if isinstance(each.file, DataFile) and each.print is not None and each.print.chunks:
        starts = [*each.print.chunks, (each.print.size, 0)]
        for (start, number), (end, _) in pairwise(starts):
            yield Task(
                each.name, each.layout, Lines(each.file, start, end, number), end - start, each.is_other, each.held_out
            )
        return
    rows = to_the_end(read_one(each.file), each.name, 1)
    while piece := list(islice(rows, ROWS)):
        yield Task(each.name, each.layout, piece, 0, each.is_other, each.held_out)


def rows_of(task: Task) -> Iterator[Row | Malformed]:
    """The rows of a task, read where they are only named."""
    if not isinstance(task.rows, Lines):
        return iter(task.rows)
    lines = task.rows
    rows = read_lines(lines.file, lines.start, lines.end, lines.number)
    return to_the_end(rows, task.file, lines.number)


def to_the_end(rows: Iterator[Row | Malformed], name: str, first: int) -> Iterator[Row | Malformed]:
    """Rows of a file; if it breaks off, the row at which it does is malformed.

    Args:
        rows: as read.
        name: of the file.
        first: the number of the first row.
    """
    next_row = first
    try:
        for row in rows:
            next_row = row.source.row + 1
            yield row
    except UserError as error:
        yield Malformed(Source(name, next_row), f"reading stops here: {error}")


def _input(file: Found, format: str, formats: Sequence[str], columns: Mapping[str, str]) -> Input:
    if not isinstance(file, DataFile):
        return Input(file, None, identity(file), _layout(read_one(file), format, formats, columns))
    try:
        found = fingerprint(file.path, has_lines=file.extension in LINES and not file.compression)
    except OSError as error:
        raise UserError(f"{file.shown} cannot be read: {error.strerror or error}.") from error
    rows = read_lines(file, 0, found.size, 1) if found.chunks else read_one(file)
    return Input(file, found, found.sha256, _layout(rows, format, formats, columns))


def _layout(rows: Iterator[Row | Malformed], format: str, formats: Sequence[str], columns: Mapping[str, str]) -> Layout:
    """The format of the first rows that can be read. A file without any is reported row by row."""
    first: list[Row] = []
    with suppress(UserError):  # it is reported with the row at which it breaks off
        first.extend(row for row in islice(rows, DETECT_ROWS) if isinstance(row, Row))
    return Layout(_format(first, format, formats, columns) if first else "", columns)


def _format(rows: Sequence[Row], format: str, formats: Sequence[str], columns: Mapping[str, str]) -> str:
    if format != "auto" or formats:
        return chosen_format(rows, format, formats, columns)
    return format_of_rows(rows, columns)
