"""The content of data files, hashed once: a file that did not change since is not read again.

Beside the SHA-256, a file of JSON lines has marks: places where a chunk can begin, with the number of the line there.
"""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tunesmith.cache_directory import cache_directory
from tunesmith.run import atomic_write

CHUNK = 8 << 20
"""Bytes of a file of JSON lines that one worker checks at a time, at least: up to the end of a line."""

BLOCK = 1 << 20
"""Bytes that are read at once."""

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""How a file in UTF-16 begins: its lines do not end in one byte."""

SETTLED = 2.0
"""Seconds after a change from which a file's time says whether it was changed again: two changes within a tick of the
file system's clock look like one."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a file holds.

    Attributes:
        size: in bytes.
        changed: when, in nanoseconds.
        inode: of the file.
        sha256: of its bytes, in hexadecimal.
        chunks: of JSON lines: (byte, number of the line that begins there, from 1), of each chunk.
    """

    size: int
    changed: int
    inode: int
    sha256: str
    chunks: tuple[tuple[int, int], ...] = ()


def fingerprint(path: Path, has_lines: bool) -> Fingerprint:
    """A file's fingerprint: the stored one if neither its size nor its time has changed since.

    Args:
        path: of the file.
        has_lines: whether it is an uncompressed file of JSON lines.

    Raises:
        OSError: it cannot be read.
    """
    stored = cache_directory() / "data-checks" / "files" / f"{_name(path, has_lines)}.json"
    now = path.stat()
    with suppress(OSError, ValueError, TypeError, KeyError):
        values = json.loads(stored.read_text(encoding="utf-8"))
        found = Fingerprint(**{**values, "chunks": tuple(map(tuple, values["chunks"]))})
        if (found.size, found.changed, found.inode) == (now.st_size, now.st_mtime_ns, now.st_ino):
            return found
    sha256, chunks = _read(path, has_lines)
    found = Fingerprint(now.st_size, now.st_mtime_ns, now.st_ino, sha256, chunks)
    if time.time() - now.st_mtime > SETTLED:
        with suppress(OSError):  # no place to store it
            stored.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(stored) as file:
                json.dump(asdict(found), file)
    return found


def is_unchanged(path: Path, found: Fingerprint) -> bool:
    """Whether the file is still what it was when its fingerprint was taken, by its size and time.

    Raises:
        OSError: it is not there any more.
    """
    now = path.stat()
    return (found.size, found.changed, found.inode) == (now.st_size, now.st_mtime_ns, now.st_ino)


def _name(path: Path, has_lines: bool) -> str:
    return hashlib.sha256(f"{path.resolve()}\0{has_lines}\0{CHUNK}".encode(errors="surrogateescape")).hexdigest()[:32]


def _read(path: Path, has_lines: bool) -> tuple[str, tuple[tuple[int, int], ...]]:
    digest = hashlib.sha256()
    chunks, position, line, due = [(0, 1)], 0, 1, CHUNK
    is_wide = False
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            is_wide |= position == 0 and block[:2] in UTF_16
            if has_lines:
                begin = 0
                while (end := block.find(b"\n", max(begin, due - position))) >= 0:
                    line += block.count(b"\n", begin, end + 1)
                    begin = end + 1
                    chunks.append((position + begin, line))
                    due = position + begin + CHUNK
                line += block.count(b"\n", begin)
            position += len(block)
    if is_wide or not has_lines:
        return digest.hexdigest(), ()
    return digest.hexdigest(), tuple(each for each in chunks if each[0] < position or each[0] == 0)
