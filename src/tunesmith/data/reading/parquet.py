"""Parquet, row group by row group."""

import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from tunesmith.data.example import Malformed, Row, Source
from tunesmith.errors import UserError

ROWS = 256
"""Rows per batch."""


def read_parquet(stream: IO[bytes], name: str, is_compressed: bool) -> Iterator[Row | Malformed]:
    """The rows of a Parquet file. Dates, times and decimals become texts.

    Args:
        stream: of its bytes.
        name: of the file.
        is_compressed: whether the stream decompresses; such a file is unpacked to a temporary one.

    Raises:
        UserError: it is broken, or names a column twice.
    """
    import pyarrow

    number = 0
    try:
        for batch in _batches(_unpacked(stream) if is_compressed else stream, name):
            for values in batch:
                number += 1
                yield Row(values, Source(name, number))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} cannot be read as Parquet after row {number:,}: {reason.rstrip('.')}. Write or copy it again."
        ) from error


def _unpacked(stream: IO[bytes]) -> IO[bytes]:
    """The decompressed file, which the system removes once it is closed."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the reader needs it
    shutil.copyfileobj(stream, file, 1 << 20)
    file.seek(0)
    return file


def _batches(stream: IO[bytes], name: str) -> Iterator[list[dict[str, Any]]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(stream)
    columns = file.schema_arrow.names
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise UserError(f"{name} has two columns named {twice!r}. Give each column its own name.")
    for batch in file.iter_batches(batch_size=ROWS):
        values = {column: _values(batch.column(index)) for index, column in enumerate(columns)}
        yield [dict(zip(columns, row, strict=True)) for row in zip(*values.values(), strict=True)] if columns else []


def _values(column: Any) -> list[Any]:
    """As Python's values; Python's own dates hold fewer years, and its times no nanoseconds."""
    from pyarrow import string, types

    if (types.is_temporal(column.type) and not types.is_duration(column.type)) or types.is_decimal(column.type):
        column = column.cast(string())
    elif types.is_duration(column.type):
        column = column.cast("int64")
    values: list[Any] = column.to_pylist()
    return values
