"""CSV (RFC 4180) and TSV; the first record names the columns."""

import csv
import re
from collections.abc import Iterator
from functools import partial
from io import TextIOWrapper
from typing import IO

from tunesmith.data.example import Malformed, Row, Source
from tunesmith.data.reading.json_lines import not_utf8
from tunesmith.errors import UserError

LARGEST_FIELD = 64_000_000
"""Characters in a field; a longer field means that a quote was never closed."""

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def read_delimited(stream: IO[bytes], name: str, delimiter: str, start: int = 0) -> Iterator[Row | Malformed]:
    """The records after the first. If the first line has no comma, a CSV file may use ; or tab.

    Args:
        stream: of the file's bytes.
        name: of the file.
        delimiter: between fields.
        start: where in the file the stream begins.

    Raises:
        UserError: the first line does not name columns.
    """
    # The csv module has one limit per process; its default of 131,072 is less than a long document.
    csv.field_size_limit(LARGEST_FIELD)
    position = start
    bad_byte: int | None = None

    def lines() -> Iterator[str]:
        nonlocal position, bad_byte
        text = TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        for line in iter(partial(text.readline, LARGEST_FIELD), ""):
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
            yield not_utf8(source, bad_byte)
        elif len(fields) != len(columns):
            count = f"{len(fields)} field{'s' if len(fields) != 1 else ''}"
            yield Malformed(source, f"{count}, but the header names {len(columns)} ({', '.join(columns)})")
        elif any("\0" in field for field in fields):
            yield Malformed(source, "holds a NUL byte, which is no text")
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
    refuse_duplicates(columns, name)
    return columns


def refuse_duplicates(columns: list[str], name: str) -> None:
    """Refuse a header that names a column twice.

    Args:
        columns: of the first line.
        name: of the file.

    Raises:
        UserError: it does.
    """
    duplicate = next((column for column in columns if columns.count(column) > 1), None)
    if duplicate is not None:
        raise UserError(f"{name}: the first line names column {duplicate!r} twice. Give each column its own name.")


def _quoting(error: csv.Error) -> str:
    message = str(error)
    if message == "unexpected end of data":
        return "a quote is opened here and never closed, so the rest of the file belongs to it"
    if "field larger" in message:
        return f"a field of more than {LARGEST_FIELD:,} characters: a quote is opened here and never closed"
    return f"broken quoting ({message}); inside a quoted field, write a quote twice"
