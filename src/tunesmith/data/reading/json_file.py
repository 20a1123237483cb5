"""A JSON file: a list of rows, or an object around one."""

import json
import re
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import IO

from tunesmith.data.example import Malformed, Row, Source
from tunesmith.data.reading.json_lines import DEEPEST, TOO_DEEP, checked, not_utf8, read_json_lines
from tunesmith.data.reading.json_rows import rows_of
from tunesmith.errors import UserError

LARGEST = 2_000_000_000
"""Bytes. Its grammar requires that it is read in full; JSON Lines are streamed."""

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def read_json(stream: IO[bytes], name: str, start: int = 0) -> Iterator[Row | Malformed]:
    """The rows of a JSON file; one with an object on each line is read as JSON lines, whatever its name.

    Args:
        stream: of its bytes.
        name: of the file.
        start: where in the file the stream begins.

    Raises:
        UserError: it is not JSON, is too large, or holds no rows.
    """
    content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(f"{name} has more than {LARGEST / 1e9:.0f} GB of JSON in one value. Write it as JSON Lines.")
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
            yield from read_json_lines(BytesIO(content), name, start)
            return
        raise UserError(
            f"{name} is not valid JSON: {error.msg} at line {error.lineno:,}, character {error.colno:,}. Fix it "
            "there; if the file is truncated, copy it again."
        ) from None
    except RecursionError:
        raise UserError(f"{name} is {TOO_DEEP}. Write a list of rows with fewer levels.") from None
    except ValueError:
        digits = sys.get_int_max_str_digits()
        raise UserError(f"{name} holds a number of more than {digits:,} digits. Write it as a text.") from None
    escapes = b"\\ud" in content or b"\\uD" in content
    may_be_deep = content.count(b"[") + content.count(b"{") > DEEPEST
    for number, values in enumerate(rows_of(value, name), 1):
        source = Source(name, number)
        row = checked(values, source, escapes, may_be_deep)
        if isinstance(row, Row) and first_bad is not None and _is_not_utf8(row):
            yield not_utf8(source, first_bad)
        else:
            yield row


def _is_not_utf8(row: Row) -> bool:
    return bool(_ESCAPED_BYTE.search(json.dumps(row.values, ensure_ascii=False)))
