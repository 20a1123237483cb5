"""Rows from data files, one at a time, each with its file and row number.

A row number is 1-based. It counts lines in JSONL, records after the header in CSV, TSV and Excel (quoted fields may
hold line breaks), list items in JSON, rows in Parquet, queries and hub data sets, documents in text. Blank lines are
counted but are not rows. All but JSON, Excel and documents are streamed: memory does not grow with the file. Those are
read in full, as their grammar requires, up to a limit.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from tunesmith.data import hub
from tunesmith.data.example import Malformed, Row, Source
from tunesmith.data.files import DOCUMENTS, DataFile, Found, find
from tunesmith.data.reading.delimited import read_delimited
from tunesmith.data.reading.json_file import read_json
from tunesmith.data.reading.json_lines import read_json_lines
from tunesmith.data.reading.opened import BOM, opened, plain_errors
from tunesmith.data.reading.paired import PairedLines
from tunesmith.data.reading.parquet import read_parquet
from tunesmith.data.reading.remote import RemoteFile
from tunesmith.data.reading.sql import SqlQuery
from tunesmith.data.reading.texts import read_document, read_text
from tunesmith.data.reading.workbook import read_workbook_rows
from tunesmith.errors import UserError
from tunesmith.file_hash import file_sha256

__all__ = ["Row", "fingerprint", "identity", "read", "read_by", "read_lines", "read_one"]

T = TypeVar("T")

BINARY = (".parquet", ".pdf", ".docx", ".pptx", ".xlsx")
"""Extensions of files that are not text."""


def read(paths: Sequence[str], base_dir: Path) -> Iterator[Row | Malformed]:
    """All rows of the paths, in order.

    Args:
        paths: files, directories, globs, hub data sets (`hf://owner/name[:config][@split]`, or `owner/name` if no such
            path exists), files elsewhere (`s3://…`, `https://…`), or queries (`sqlite:///file.db#SELECT …`).
        base_dir: the directory that relative paths start from.

    Raises:
        UserError: immediately for a path that does not exist or cannot be data; while reading for a file that is empty,
            broken, changed meanwhile, or not of the type that its extension names. A single bad row is `Malformed` and
            does not stop reading.
    """
    return read_by(read_one, paths, base_dir)


def read_by(reader: Callable[[Found], Iterator[T]], paths: Sequence[str], base_dir: Path) -> Iterator[T]:
    """All rows of the paths, in order, as a function reads them.

    Args:
        reader: the rows of one file, query or hub data set.
        paths: as `read` takes them.
        base_dir: the directory that relative paths start from.

    Raises:
        UserError: immediately for a path that does not exist or cannot be data; while reading for a file without rows.
    """
    return _read_all(reader, find(paths, base_dir), ", ".join(map(str, paths)))


def fingerprint(paths: Sequence[str], base_dir: Path) -> dict[str, str]:
    """What identifies the content of each file, by its path as given: as `identity`."""
    found = find(paths, base_dir)
    return {each.name if isinstance(each, DataFile) else str(each): identity(each) for each in found}


def identity(file: Found) -> str:
    """What identifies the content.

    Args:
        file: as `find` returns it.

    Returns:
        The SHA-256 (hex) of a file's bytes or of a query's rows; `commit:` and its commit for a hub data set; a file
        elsewhere has what its storage calls it.

    Raises:
        UserError: it cannot be read.
    """
    match file:
        case DataFile():
            with plain_errors(file):
                return file_sha256(file.path)
        case PairedLines():
            with plain_errors(file.files[0]):
                return file.fingerprint()
        case SqlQuery() | RemoteFile():
            return file.fingerprint()
    return f"commit:{hub.commit(file)}"


def _read_all(reader: Callable[[Found], Iterator[T]], files: Sequence[Found], paths: str) -> Iterator[T]:
    any_rows = False
    for each in files:
        rows = 0
        for row in reader(each):
            rows += 1
            yield row
        any_rows |= rows > 0
        if not rows and getattr(each, "is_named", True):
            raise UserError(
                f"{each.shown if isinstance(each, DataFile) else each} holds no rows. Name a file that does."
            )
    if not any_rows:
        raise UserError(f"{paths}: none of the {len(files):,} files holds a row. Name files that do.")


def read_one(file: Found) -> Iterator[Row | Malformed]:
    """The rows of one file, query or hub data set, as `find` returns it.

    Raises:
        UserError: while reading: it is broken, or not of the type that its extension names.
    """
    match file:
        case DataFile():
            return _unchanged(file)
        case RemoteFile():
            return _read_file(file)
        case SqlQuery() | PairedLines():
            return file.rows()
    return _read_hub(file)


def read_lines(file: DataFile, start: int, end: int, number: int) -> Iterator[Row | Malformed]:
    """Some lines of an uncompressed file of JSON lines.

    Args:
        file: has such an extension.
        start: the byte at which the first line begins.
        end: the byte after the last one.
        number: of the first line, from 1.
    """
    with plain_errors(file), file.path.open("rb") as stream:
        stream.seek(start + len(BOM) if start == 0 and stream.read(3) == BOM else start)
        yield from read_json_lines(stream, file.shown, start, number, end)


def _read_hub(data_set: hub.HubDataSet) -> Iterator[Row]:
    for number, values in enumerate(hub.stream(data_set), 1):
        yield Row(values, Source(str(data_set), number))


def _unchanged(file: DataFile) -> Iterator[Row | Malformed]:
    """The rows of a file that nothing writes meanwhile."""
    with plain_errors(file):
        before = file.path.stat()
    number = 0
    for row in _read_file(file):
        number = row.source.row
        yield row
    with plain_errors(file):
        after = file.path.stat()
    if _state(before) != _state(after):
        raise UserError(
            f"{file.shown} changed while it was read (up to row {number:,}). Read it again once nothing writes it."
        )


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read_file(file: DataFile | RemoteFile) -> Iterator[Row | Malformed]:
    with opened(file, is_text=file.extension not in BINARY) as (stream, start):
        yield from _rows(file, stream, start)


def _rows(file: DataFile | RemoteFile, stream: IO[bytes], start: int) -> Iterator[Row | Malformed]:
    name, extension = file.shown, file.extension
    if extension in (".jsonl", ".ndjson"):
        return read_json_lines(stream, name, start)
    if extension == ".json":
        return read_json(stream, name, start)
    if extension in (".csv", ".tsv"):
        return read_delimited(stream, name, "\t" if extension == ".tsv" else ",", start)
    if extension == ".parquet":
        return read_parquet(stream, name, file.compression is not None or not stream.seekable())
    if extension == ".xlsx":
        return read_workbook_rows(stream, name)
    if extension in DOCUMENTS:
        return read_document(stream, name, extension)
    return read_text(stream, name, start)
