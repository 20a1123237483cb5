"""Plain text as documents: a file is one document, unless it is too long to hold in memory."""

import re
from collections.abc import Iterator
from typing import IO

WHOLE = 1_000_000
"""Bytes up to which a file is one document."""

PIECE = 100_000
"""Bytes after which a document of a longer file ends at the next blank line."""

_BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")


def pieces(stream: IO[bytes]) -> Iterator[bytes]:
    """A file of up to `WHOLE` bytes (1 MB) as one document; a longer one as documents of about `PIECE` bytes (100 kB).

    A piece ends after the first blank line past 100 kB. If there is none within another 100 kB, it ends after the next
    line end, else after the next space, else between two characters. The concatenated pieces are the file.
    """
    buffer = stream.read(WHOLE + 1)
    if len(buffer) <= WHOLE:
        if buffer:
            yield buffer
        return
    while buffer:
        if len(buffer) <= WHOLE:
            buffer += stream.read(WHOLE)
        end = _end(buffer)
        yield buffer[:end]
        buffer = buffer[end:]


def _end(buffer: bytes) -> int:
    if len(buffer) <= PIECE:
        return len(buffer)
    if blank := _BLANK_LINES.search(buffer, PIECE, 2 * PIECE):
        return blank.end()
    for mark in (b"\n", b" "):
        if (position := buffer.find(mark, PIECE)) >= 0:
            return position + 1
    end = min(2 * PIECE, len(buffer))
    while end < len(buffer) and buffer[end] & 0xC0 == 0x80:  # inside a UTF-8 character
        end -= 1
    return end
