"""Files elsewhere, through fsspec: `s3://`, `gs://`, `https://` and what else it knows, streamed."""

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from tunesmith.data.reading import secrets
from tunesmith.data.reading.opened import COMPRESSED, extension_of
from tunesmith.errors import UserError

EXTRAS = {"http": "remote", "https": "remote", "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""The extra that installs what a protocol needs."""

IDENTITIES = ("ETag", "etag", "md5Hash", "content_md5", "sha256")
"""What a storage calls the identity of a file's content, in the order of preference."""

BLOCK = 1 << 20
"""Bytes of a request."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that fsspec reads.

    Attributes:
        url: as in the recipe, or as a pattern matches it; `${NAME}` is an environment variable.
        is_named: the user named the file itself, not a pattern that it matches.
    """

    url: str
    is_named: bool = True

    @classmethod
    def find(cls, given: str) -> "Iterator[RemoteFile]":
        """The file, or the files that a pattern matches, sorted.

        Raises:
            UserError: fsspec or what a protocol needs is not installed, or the URL has a password in clear.
        """
        secrets.refuse_password(given)
        scheme = given.partition("://")[0].lower()
        path = given.partition("?")[0]
        if scheme in ("http", "https") or not any(mark in path for mark in "*["):
            yield cls(given)
            return
        with _plain_errors(given):
            system, pattern = _system(given)
            names = sorted(map(str, system.glob(pattern)))
        if not names:
            raise UserError(f"{secrets.shown(given)}: no file matches this pattern.")
        yield from (cls(f"{scheme}://{name.removeprefix(f'{scheme}://')}", False) for name in names)

    def __str__(self) -> str:
        return self.shown

    @property
    def shown(self) -> str:
        """Its URL without secrets."""
        return secrets.shown(self.url)

    @property
    def name(self) -> str:
        """As `shown`: what a report and the sources of rows have."""
        return self.shown

    @property
    def _path(self) -> Path:
        return Path(self.url.partition("?")[0].partition("#")[0])

    @property
    def extension(self) -> str:
        """Such as `.csv`, without `.gz` or `.zst`."""
        return extension_of(self._path)

    @property
    def compression(self) -> str | None:
        """`gzip`, `zstd` or None."""
        return COMPRESSED.get(self._path.suffix.lower())

    def open(self) -> IO[bytes]:
        """Its bytes as they are stored.

        Raises:
            UserError: it cannot be opened.
        """
        with _plain_errors(self.url):
            system, path = _system(self.url)
            return cast(IO[bytes], _Named(system.open(path, "rb", block_size=BLOCK), self.url))

    def fingerprint(self) -> str:
        """What identifies its content: the storage's ETag or checksum with the size, else the SHA-256 of its bytes.

        Raises:
            UserError: it cannot be read.
        """
        with _plain_errors(self.url):
            system, path = _system(self.url)
            info: Mapping[str, Any] = system.info(path)
        for name in IDENTITIES:
            if info.get(name):
                return f"{name.lower()}:{str(info[name]).strip(chr(34))}:{info.get('size')}"
        digest = hashlib.sha256()
        with self.open() as stream:
            while part := stream.read(BLOCK):
                digest.update(part)
        return digest.hexdigest()


class _Named:
    """A stream whose errors name its URL without secrets."""

    def __init__(self, stream: IO[bytes], url: str) -> None:
        self._stream, self._url = stream, url

    def __enter__(self) -> "_Named":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def readinto(self, buffer: Any) -> int:
        with _plain_errors(self._url):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        with _plain_errors(self._url):
            return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None:
        self._stream.close()

    @property
    def closed(self) -> bool:
        return bool(self._stream.closed)


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    import fsspec

    system, path = fsspec.core.url_to_fs(secrets.expanded(url))
    return system, str(path)


@contextmanager
def _plain_errors(url: str) -> Iterator[None]:
    """One error for the many types that storages raise, with the first line of their message and without secrets."""
    shown, scheme = secrets.shown(url), url.partition("://")[0].lower()
    extra = EXTRAS.get(scheme)
    if importlib.util.find_spec("fsspec") is None:
        raise UserError(f'{shown} is read through fsspec, which is not installed: pip install "tunesmith[remote]"')
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        what = f'pip install "tunesmith[{extra}]"' if extra else f"{error}"
        raise UserError(f"{shown}: what reads {scheme}:// is not installed: {what}") from None
    except FileNotFoundError:
        raise UserError(f"{shown}: there is no such file, or you may not read it.") from None
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].replace(secrets.expanded(url), shown)
        raise UserError(
            f"{shown} cannot be read: {first.rstrip('.')}. Check the URL, your access and the network."
        ) from None


def is_remote(given: str) -> bool:
    """Whether it is a URL whose protocol fsspec knows.

    Args:
        given: as in the recipe.
    """
    scheme, slashes, _ = given.partition("://")
    if not slashes:
        return False
    if scheme.lower() in EXTRAS:
        return True
    if importlib.util.find_spec("fsspec") is None:
        return False
    from fsspec.registry import known_implementations, registry

    return scheme.lower() in {*known_implementations, *registry}
