"""Plain text as documents: a file is one document, unless it is too long to be held in memory as one."""

import re
from collections.abc import Iterator
from typing import IO

WHOLE = 1_000_000
"""Bytes up to which a file is one document."""

PIECE = 100_000
"""Bytes after which a document of a longer file ends at the next blank line."""

_BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")


def documents(stream: IO[bytes]) -> Iterator[bytes]:
    """A file of up to `WHOLE` bytes (1 MB) as it is; a longer one in documents of about `PIECE` bytes (100 kB).

    A piece ends after the first blank line past 100 kB; where none comes within another 100 kB, after the next line
    end, else after the next space, else between two characters. Put end to end, the pieces are the file.
    """
    held = stream.read(WHOLE + 1)
    if len(held) <= WHOLE:
        if held:
            yield held
        return
    while held:
        if len(held) <= WHOLE:
            held += stream.read(WHOLE)
        end = _end(held)
        yield held[:end]
        held = held[end:]


def _end(held: bytes) -> int:
    if len(held) <= PIECE:
        return len(held)
    if blank := _BLANK_LINES.search(held, PIECE, 2 * PIECE):
        return blank.end()
    for mark in (b"\n", b" "):
        if (place := held.find(mark, PIECE)) >= 0:
            return place + 1
    end = min(2 * PIECE, len(held))
    while end < len(held) and held[end] & 0xC0 == 0x80:  # inside a UTF-8 character
        end -= 1
    return end
