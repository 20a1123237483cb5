"""A file's bytes, decompressed and after its byte order mark, with errors that name the file."""

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Protocol, cast

from tunesmith.errors import UserError

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Compression by extension."""

BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Readable(Protocol):
    """A file on this machine or elsewhere."""

    @property
    def shown(self) -> str:
        """Its name in messages."""

    @property
    def compression(self) -> str | None:
        """`gzip`, `zstd` or None."""

    def open(self) -> IO[bytes]:
        """Its bytes as they are stored."""


def extension_of(path: Path) -> str:
    """Such as `.csv`, without `.gz` or `.zst`.

    Args:
        path: of the file, or only its name.
    """
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


@contextmanager
def opened(file: Readable, is_text: bool = True) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file.

    Args:
        file: to open.
        is_text: whether it should be UTF-8, perhaps with a byte order mark, which is skipped.

    Yields:
        Its decompressed bytes, and how many were skipped.

    Raises:
        UserError: it cannot be read, is truncated, or is UTF-16 or binary where text is expected; also while it is
            read.
    """
    with plain_errors(file), file.open() as stored, _decompressed(stored, file.compression) as stream:
        start = stream.peek(8192)
        if not is_text:
            yield cast(IO[bytes], stream), 0
            return
        if start[:2] in _UTF_16:
            raise UserError(f"{file.shown} is in UTF-16. Save it as UTF-8.")
        if b"\0" in start:
            raise UserError(f"{file.shown} holds NUL bytes: it is binary, or UTF-16 without a mark. Save it as UTF-8.")
        yield cast(IO[bytes], stream), len(stream.read(3)) if start.startswith(BOM) else 0


def _decompressed(stored: IO[bytes], compression: str | None) -> Any:
    """A stream with `peek`."""
    if compression == "gzip":
        return BufferedReader(cast(Any, gzip.GzipFile(fileobj=stored)), 1 << 17)
    if compression == "zstd":
        return BufferedReader(cast(Any, _zstd().ZstdFile(stored)), 1 << 17)
    return stored if isinstance(stored, BufferedReader) else BufferedReader(cast(Any, stored), 1 << 17)


def _zstd() -> Any:
    """The standard library's module, or what stands in for it before Python 3.14."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


@contextmanager
def plain_errors(file: Readable) -> Iterator[None]:
    """Turn errors of the file system and of decompression into an error that names the file."""
    broken: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error)
    if file.compression == "zstd":
        broken += (_zstd().ZstdError,)
    try:
        yield
    except broken as error:
        raise UserError(
            f"{file.shown} is truncated or is not {file.compression or 'whole'} ({error}). Copy or download it again."
        ) from error
    except OSError as error:
        raise UserError(f"{file.shown} cannot be read: {error.strerror or error}.") from error
