"""Rows from data files, one at a time, each with its file and row number.

A row number is 1-based. It counts lines in JSONL, records after the header in CSV and TSV (quoted fields may hold line
breaks), list items in JSON, rows in Parquet and hub data sets, documents in plain text. Blank lines are counted but are
not rows. JSONL, CSV, TSV, Parquet, text and hub data sets are streamed: memory does not grow with the file. A JSON file
is read in full, as its grammar requires; gzipped Parquet is decompressed in memory.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import IO, Any, cast

from tunesmith.data import hub
from tunesmith.data.documents import documents
from tunesmith.data.example import Malformed, Source
from tunesmith.data.files import DataFile, find
from tunesmith.data.json_rows import rows_of
from tunesmith.errors import UserError
from tunesmith.file_hash import file_sha256

LARGEST_FIELD = 64_000_000
"""Characters in a CSV field; a longer field means that a quote was never closed."""

PARQUET_ROWS = 256
"""Rows per batch."""

_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is in the file: its columns, or the text itself; and its source."""

    values: dict[str, Any] | str
    source: Source


def read(paths: Sequence[str], base_dir: Path) -> Iterator[Row | Malformed]:
    """All rows of the paths, in order.

    Args:
        paths: files, directories, globs, or hub data sets (`hf://owner/name[:config][@split]`, or `owner/name` if no
            such path exists).
        base_dir: the directory that relative paths start from.

    Raises:
        UserError: immediately for a path that does not exist or cannot be data; while reading for a file that is empty,
            broken or not of the type that its extension names. A single bad row is `Malformed` and does not stop
            reading.
    """
    return _read_all(find(paths, base_dir), ", ".join(map(str, paths)))


def fingerprint(paths: Sequence[str], base_dir: Path) -> dict[str, str]:
    """SHA-256 (hex) of each file's bytes, by the file's path as given; for a hub data set, `commit:` and its commit."""
    prints: dict[str, str] = {}
    for each in find(paths, base_dir):
        if isinstance(each, DataFile):
            with _with_plain_errors(each):
                prints[each.name] = file_sha256(each.path)
        else:
            prints[str(each)] = f"commit:{hub.commit(each)}"
    return prints


def _read_all(files: Sequence[DataFile | hub.HubDataSet], paths: str) -> Iterator[Row | Malformed]:
    any_rows = False
    for each in files:
        rows = 0
        for row in read_one(each):
            rows += 1
            yield row
        any_rows |= rows > 0
        if not rows and (isinstance(each, hub.HubDataSet) or each.is_named):
            raise UserError(
                f"{each.shown if isinstance(each, DataFile) else each} holds no rows. Name a file that does."
            )
    if not any_rows:
        raise UserError(f"{paths}: none of the {len(files):,} files holds a row. Name files that do.")


def read_one(file: DataFile | hub.HubDataSet) -> Iterator[Row | Malformed]:
    """The rows of one file or hub data set, as `find` returns it.

    Raises:
        UserError: while reading: it is broken, or not of the type that its extension names.
    """
    return _read_file(file) if isinstance(file, DataFile) else _read_hub(file)


def read_lines(file: DataFile, start: int, end: int, number: int) -> Iterator[Row | Malformed]:
    """Some lines of an uncompressed file of JSON lines.

    Args:
        file: has such an extension.
        start: the byte at which the first line begins.
        end: the byte after the last one.
        number: of the first line, from 1.
    """
    with _with_plain_errors(file), file.path.open("rb") as stream:
        stream.seek(start + len(_BOM) if start == 0 and stream.read(3) == _BOM else start)
        yield from _read_json_lines(stream, file.shown, number, end)


def _read_hub(data_set: hub.HubDataSet) -> Iterator[Row]:
    for number, values in enumerate(hub.stream(data_set), 1):
        yield Row(values, Source(str(data_set), number))


def _read_file(file: DataFile) -> Iterator[Row | Malformed]:
    with _with_plain_errors(file), _open(file) as stream:
        match file.extension:
            case ".jsonl" | ".ndjson":
                yield from _read_json_lines(stream, file.shown)
            case ".json":
                yield from _read_json(stream, file.shown)
            case ".csv" | ".tsv":
                yield from _read_delimited(stream, file.shown, "\t" if file.extension == ".tsv" else ",")
            case ".parquet":
                yield from _read_parquet(BytesIO(stream.read()) if file.is_gzip else stream, file.shown)
            case _:
                yield from _read_text(stream, file.shown)


@contextmanager
def _with_plain_errors(file: DataFile) -> Iterator[None]:
    """Turn errors of the file system and gzip into an error that names the file."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file.shown} is truncated or is not gzip ({error}). Copy or download it again.") from error
    except OSError as error:
        raise UserError(f"{file.shown} cannot be read: {error.strerror or error}.") from error


def _open(file: DataFile) -> IO[bytes]:
    """The file's bytes, decompressed, after any UTF-8 byte order mark."""
    stream = cast(IO[bytes], gzip.GzipFile(file.path, "rb")) if file.is_gzip else file.path.open("rb")
    start = stream.read(3)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        stream.close()
        raise UserError(f"{file.shown} is in UTF-16. Save it as UTF-8.")
    if start != _BOM:
        stream.seek(0)
    return stream


def _read_json_lines(stream: IO[bytes], name: str, first: int = 1, end: int | None = None) -> Iterator[Row | Malformed]:
    position = stream.tell()
    for number, line in enumerate(stream, first):
        if end is not None and position >= end:
            return
        if line.strip():
            yield _parse_line(line, position, Source(name, number))
        position += len(line)


def _parse_line(line: bytes, position: int, source: Source) -> Row | Malformed:
    """One line of JSONL, at byte `position` of the file."""
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _not_utf8(source, position + error.start)
    except json.JSONDecodeError as error:
        if source.row == 1 and line.lstrip().startswith(b"["):
            raise UserError(
                f"{source.file} begins as a JSON list, not with one object per line. Rename it to .json."
            ) from None
        return Malformed(source, f"not valid JSON: {error.msg} (character {error.pos + 1:,} of the line)")
    except (ValueError, RecursionError) as error:
        return Malformed(source, f"not valid JSON: {error}")
    return _checked(values, source, escapes=b"\\ud" in line or b"\\uD" in line)


def _checked(values: Any, source: Source, escapes: bool) -> Row | Malformed:
    """A row, if the value is an object or a text without lone surrogates, which no tokenizer accepts.

    Only a JSON escape can write a lone surrogate, so it is searched for only if `escapes` is true.
    """
    if not isinstance(values, dict | str):
        kind = {list: "a list", bool: "true or false", type(None): "null"}.get(type(values), "a number")
        return Malformed(source, f"{kind}, not an object with named columns")
    if escapes and _SURROGATE.search(json.dumps(values, ensure_ascii=False)):
        return Malformed(source, r"holds half of a surrogate pair (such as \ud83d alone), which is not a character")
    return Row(values, source)


def _not_utf8(source: Source, position: int) -> Malformed:
    return Malformed(
        source, f"not valid UTF-8 at byte {position:,} of the file (counted from 0). Save the file as UTF-8"
    )


def _read_json(stream: IO[bytes], name: str) -> Iterator[Row | Malformed]:
    """A list of rows, or an object around one; a file with one object per line is read as JSONL, whatever its name."""
    start = stream.tell()
    content = stream.read()
    try:
        text, first_bad = content.decode("utf-8"), None
    except UnicodeDecodeError as error:
        text, first_bad = content.decode("utf-8", "surrogateescape"), start + error.start
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            stream.seek(start)
            yield from _read_json_lines(stream, name)
            return
        raise UserError(
            f"{name} is not valid JSON: {error.msg} at line {error.lineno:,}, character {error.colno:,}. Fix it "
            "there; if the file is truncated, copy it again."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not valid JSON: {error}") from None
    escapes = b"\\ud" in content or b"\\uD" in content
    for number, values in enumerate(rows_of(value, name), 1):
        source = Source(name, number)
        if first_bad is not None and _ESCAPED_BYTE.search(json.dumps(values, ensure_ascii=False)):
            yield _not_utf8(source, first_bad)
        else:
            yield _checked(values, source, escapes)


def _read_delimited(stream: IO[bytes], name: str, delimiter: str) -> Iterator[Row | Malformed]:
    """CSV (RFC 4180) or TSV; the first record names the columns. If it has no comma, a CSV file may use ; or tab."""
    # The csv module has one limit per process; its default of 131,072 is less than a long document.
    csv.field_size_limit(LARGEST_FIELD)
    position = stream.tell()
    bad_byte: int | None = None

    def lines() -> Iterator[str]:
        nonlocal position, bad_byte
        for line in TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline=""):
            if bad_byte is None and not line.isascii() and (bad := _ESCAPED_BYTE.search(line)):
                bad_byte = position + len(line[: bad.start()].encode("utf-8"))
            position += len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))
            yield line

    text = lines()
    first = next(text, "")
    if delimiter == "," and "," not in first:
        delimiter = next((other for other in ";\t" if other in first), ",")
    records = csv.reader(_rejoined(first, text), delimiter=delimiter, strict=True)
    columns = _header(records, name)
    if bad_byte is not None:
        raise UserError(
            f"{name}: the first line, which names the columns, is not UTF-8 at byte {bad_byte:,}. Save it as UTF-8."
        )
    number = 0
    while True:
        number += 1
        source = Source(name, number)
        bad_byte = None
        try:
            fields = next(records, None)
        except csv.Error as error:
            yield Malformed(source, _quoting(error))
            continue
        if fields is None:
            return
        if not fields:
            continue
        if bad_byte is not None:
            yield _not_utf8(source, bad_byte)
        elif len(fields) != len(columns):
            yield Malformed(source, f"{len(fields)} fields, but the header names {len(columns)} ({', '.join(columns)})")
        else:
            yield Row(dict(zip(columns, fields, strict=True)), source)


def _rejoined(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _header(records: Iterator[list[str]], name: str) -> list[str]:
    try:
        columns = next((record for record in records if record), [])
    except csv.Error as error:
        raise UserError(f"{name}: the first line, which names the columns, is broken: {_quoting(error)}.") from None
    duplicate = next((column for column in columns if columns.count(column) > 1), None)
    if duplicate is not None:
        raise UserError(f"{name}: the first line names column {duplicate!r} twice. Give each column its own name.")
    return columns


def _quoting(error: csv.Error) -> str:
    message = str(error)
    if message == "unexpected end of data":
        return "a quote is opened here and never closed, so the rest of the file belongs to it"
    if "field larger" in message:
        return f"a field of more than {LARGEST_FIELD:,} characters: a quote is opened here and never closed"
    return f"broken quoting ({message}); inside a quoted field, write a quote twice"


def _read_parquet(stream: IO[bytes], name: str) -> Iterator[Row | Malformed]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=PARQUET_ROWS):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, Source(name, number))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} cannot be read as Parquet after row {number:,}: {reason.rstrip('.')}. Write or copy it again."
        ) from error


def _read_text(stream: IO[bytes], name: str) -> Iterator[Row | Malformed]:
    position = stream.tell()
    for number, document in enumerate(documents(stream), 1):
        source = Source(name, number)
        try:
            yield Row(document.decode("utf-8"), source)
        except UnicodeDecodeError as error:
            yield _not_utf8(source, position + error.start)
        position += len(document)
