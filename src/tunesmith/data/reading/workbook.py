"""Excel files as rows: the first row of each sheet names the columns (openpyxl, `tunesmith[office]`)."""

from collections.abc import Iterator
from datetime import date, datetime, time
from typing import IO, Any

from tunesmith.data.documents.document import UnreadableError
from tunesmith.data.documents.office import reading_archive
from tunesmith.data.documents.read import LARGEST
from tunesmith.data.example import Row, Source
from tunesmith.data.reading.delimited import refuse_duplicates
from tunesmith.errors import UserError


def read_workbook_rows(stream: IO[bytes], name: str) -> Iterator[Row]:
    """The rows of a workbook's sheets; of formulas, the values that were saved. Numbers and dates become texts.

    Args:
        stream: of its bytes.
        name: of the file.

    Raises:
        UserError: it is damaged, encrypted or too large, its sheets have different columns, or openpyxl is not
            installed.
    """
    data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UserError(f"{name} has more than {LARGEST / 1e6:.0f} MB. Save it as CSV (UTF-8).")
    try:
        with reading_archive(data) as archive:
            yield from _rows(archive, name)
    except UnreadableError as error:
        raise UserError(f"{name} cannot be read: {error}.") from None


def _rows(archive: IO[bytes], name: str) -> Iterator[Row]:
    import openpyxl

    book = openpyxl.load_workbook(archive, read_only=True, data_only=True)
    columns: list[str] = []
    number, first_sheet = 0, ""
    for sheet in book.worksheets:
        records = sheet.iter_rows(values_only=True)
        own = _header(records)
        if not own:
            continue
        refuse_duplicates(own, f"{name}, sheet {sheet.title}")
        if columns and own != columns:
            raise UserError(
                f"{name}: the sheets {first_sheet} and {sheet.title} have different columns ({', '.join(columns)}; "
                f"{', '.join(own)}). Save the one that you mean as CSV (UTF-8)."
            )
        columns, first_sheet = own, first_sheet or sheet.title
        for record in records:
            number += 1
            values = [_text(value) for value in record[: len(columns)]]
            if any(value is not None for value in values):
                values += [None] * (len(columns) - len(values))
                yield Row(dict(zip(columns, values, strict=True)), Source(name, number))


def _header(records: Iterator[tuple[Any, ...]]) -> list[str]:
    """The names in the first row that is not empty, without empty columns at its end."""
    for record in records:
        names = [str(value).strip() if value is not None else "" for value in record]
        while names and not names[-1]:
            names.pop()
        if names:
            return [name or f"column {number}" for number, name in enumerate(names, 1)]
    return []


def _text(value: Any) -> Any:
    """A cell as CSV has it; None if it is empty."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.isoformat() if isinstance(value, datetime | date | time) else str(value)
