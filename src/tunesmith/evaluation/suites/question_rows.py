"""The rows of public test sets: files at hand, with the columns that they are published with."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.example import Malformed, Source
from tunesmith.data.read import read
from tunesmith.errors import UserError
from tunesmith.evaluation.rows import spread


def rows_with(file: str, columns: Sequence[str], option: str) -> list[tuple[dict[str, Any], str]]:
    """The rows of a file that has certain columns.

    Args:
        file: in any format that data is read from.
        columns: that each row has.
        option: that names the file, for messages; such as `gsm8k.file`.

    Returns:
        Each row's values, and what the row is called.

    Raises:
        UserError: there is no file, it cannot be read, or a row lacks a column.
    """
    if not file:
        raise UserError(f"The suite {option.partition('.')[0]} needs a file: --suite-option {option}=FILE.")
    return [(_checked(row, columns), str(row.source)) for row in read([file], Path.cwd())]


def _checked(row: Any, columns: Sequence[str]) -> dict[str, Any]:
    if isinstance(row, Malformed):
        raise UserError(f"{row.source}: {row.reason}.")
    values: dict[str, Any] = row.values if isinstance(row.values, dict) else {}
    missing = [column for column in columns if values.get(column) in (None, "")]
    if missing:
        raise UserError(f"{row.source} has no {missing[0]}. A row has {', '.join(columns)}.")
    return values


def delimited(file: Path) -> Iterator[tuple[list[str], Source]]:
    """The records of a CSV file, the first one too, since MMLU's files name no columns.

    Args:
        file: in UTF-8.

    Yields:
        Its fields, and where it is.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for number, record in enumerate(csv.reader(lines), 1):
                if record:
                    yield record, Source(file.name, number)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read: {reason}.") from None


def whole_number(option: str, text: str, least: int = 0) -> int:
    """The value of a suite's option that is a number.

    Args:
        option: its name, such as `gsm8k.few_shot`.
        text: as it was typed.
        least: the smallest value that it has.

    Returns:
        The number.

    Raises:
        UserError: it is none, or smaller.
    """
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"--suite-option {option}={text} is not a whole number from {least} on.")
    return int(text)


def chosen(rows: Sequence[Any], count: int | None) -> list[Any]:
    """Some rows, evenly spaced.

    Args:
        rows: all of them.
        count: how many at most; None: all.

    Returns:
        The rows, in order.
    """
    return [rows[index] for index in spread(len(rows), len(rows) if count is None else count)]
