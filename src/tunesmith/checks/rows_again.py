"""Rows that were checked, read again to be shown."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tunesmith.checks.inputs import Input, Lines, rows_of, tasks
from tunesmith.checks.record import Record, record_of
from tunesmith.data.example import Malformed, Source
from tunesmith.data.read import Row
from tunesmith.data.row_formats import to_example

Read = Record | Malformed
"""A row as checks see it, or why it cannot be parsed."""


def read_again(files: Sequence[Input], wanted: Iterable[Source]) -> dict[Source, Read]:
    """Some rows of files. Of files of JSON lines, only the pieces with these rows are read.

    Args:
        files: that the rows are in.
        wanted: the rows; those that do not exist are left out.

    Returns:
        The rows that were found.
    """
    rows: defaultdict[str, set[int]] = defaultdict(set)
    for source in wanted:
        rows[source.file].add(source.row)
    found: dict[Source, Read] = {}
    for each in files:
        if each.name in rows:
            found |= _of_file(each, rows[each.name])
    return found


def _of_file(each: Input, rows: set[int]) -> dict[Source, Read]:
    found: dict[Source, Read] = {}
    last = max(rows)
    pieces = list(tasks(each)) if each.print is not None and each.print.chunks else None
    starts = [task.rows.number for task in pieces if isinstance(task.rows, Lines)] if pieces else []
    for index, task in enumerate(pieces or tasks(each)):
        end = starts[index + 1] if index + 1 < len(starts) else last + 1
        if starts and not any(starts[index] <= row < end for row in rows):
            continue
        for row in rows_of(task):
            if row.source.row in rows:
                found[row.source] = _read(row, each)
            if row.source.row >= last:
                return found
    return found


def _read(row: Row | Malformed, each: Input) -> Read:
    if isinstance(row, Malformed):
        return row
    example = to_example(row, each.layout.format, each.layout.columns) if each.layout.format else None
    if example is None:
        return Malformed(row.source, "in no known format")
    return example if isinstance(example, Malformed) else record_of(example)
