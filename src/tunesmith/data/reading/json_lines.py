"""JSON Lines: one object, or one text, on each line."""

import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

from tunesmith.data.example import Malformed, Row, Source
from tunesmith.errors import UserError

LONGEST = 64_000_000
"""Bytes of a line. A longer one is not held in memory."""

DEEPEST = 200
"""Levels of lists and objects in a row; what reads the row calls itself for each."""

TOO_DEEP = f"nested more than {DEEPEST} levels deep"

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json_lines(
    stream: IO[bytes], name: str, start: int = 0, first: int = 1, end: int | None = None
) -> Iterator[Row | Malformed]:
    """The rows of a file of JSON lines.

    Args:
        stream: of its bytes.
        name: of the file.
        start: where in the file the stream begins.
        first: the number of the first line.
        end: the byte of the file at which no further line begins; None: its end.
    """
    position = start
    for number, line in enumerate(iter(partial(stream.readline, LONGEST + 1), b""), first):
        is_long = len(line) > LONGEST
        if is_long or not line.isspace():
            yield parse_line(line, position, Source(name, number))
        position += len(line) + (_skip_line(stream, line) if is_long else 0)
        if end is not None and position >= end:
            return


def _skip_line(stream: IO[bytes], line: bytes) -> int:
    """Read up to the end of the line; the bytes that were read."""
    skipped = 0
    while line and not line.endswith(b"\n"):
        line = stream.readline(1 << 20)
        skipped += len(line)
    return skipped


def parse_line(line: bytes, position: int, source: Source) -> Row | Malformed:
    """One line as a row.

    Args:
        line: with its line feed; of one that is longer than `LONGEST`, the beginning is enough.
        position: the byte of the file at which it begins.
        source: where it is.

    Raises:
        UserError: the file is a JSON list.
    """
    if len(line) > LONGEST:
        return Malformed(source, f"a line of more than {LONGEST / 1e6:.0f} MB")
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return not_utf8(source, position + error.start)
    except json.JSONDecodeError as error:
        if source.row == 1 and line.lstrip().startswith(b"["):
            raise UserError(
                f"{source.file} begins as a JSON list, not with one object per line. Rename it to .json."
            ) from None
        return Malformed(source, f"not valid JSON: {error.msg} (character {error.pos + 1:,} of the line)")
    except RecursionError:
        return Malformed(source, TOO_DEEP)
    except ValueError:  # the only other one: Python refuses to read a longer number
        return Malformed(source, f"a number of more than {sys.get_int_max_str_digits():,} digits")
    is_deep = line.count(b"[") + line.count(b"{") > DEEPEST
    return checked(values, source, escapes=b"\\ud" in line or b"\\uD" in line, is_deep=is_deep)


def checked(values: Any, source: Source, escapes: bool, is_deep: bool) -> Row | Malformed:
    """A row, if the value is an object or a text without lone surrogates, which no tokenizer accepts.

    Args:
        values: the value.
        source: where it is.
        escapes: whether a surrogate may be in it: only a JSON escape can write a lone one.
        is_deep: whether it may have more levels than are read.
    """
    if not isinstance(values, dict | str):
        kind = {list: "a list", bool: "true or false", type(None): "null"}.get(type(values), "a number")
        return Malformed(source, f"{kind}, not an object with named columns")
    if is_deep and _is_deeper(values, DEEPEST):
        return Malformed(source, TOO_DEEP)
    if escapes and _SURROGATE.search(json.dumps(values, ensure_ascii=False)):
        return Malformed(source, r"holds half of a surrogate pair (such as \ud83d alone), which is not a character")
    return Row(values, source)


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether a value has more levels of lists and objects."""
    inner = [value]
    for _ in range(levels + 1):
        inner = [
            each
            for outer in inner
            if isinstance(outer, dict | list)
            for each in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(inner)


def not_utf8(source: Source, position: int) -> Malformed:
    """A row with a byte that is not UTF-8.

    Args:
        source: the row.
        position: of the byte in the file, from 0.
    """
    return Malformed(
        source, f"not valid UTF-8 at byte {position:,} of the file (counted from 0). Save the file as UTF-8"
    )
