"""Files that are only appended to, together: after a crash, all are cut to what was complete in all of them."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

PARTS = "parts.jsonl"
"""One line for each part that is complete: what it has, and what the files' sizes are after it."""


class Appended:
    """The files of a directory. Use it as a context.

    Args:
        directory: that they are in.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[str, IO[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Appended":
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def append(self, name: str, content: bytes) -> None:
        """Append to a file.

        Args:
            name: of the file.
            content: to write.
        """
        self._file(name).write(content)

    def commit(self, entry: dict[str, Any]) -> None:
        """Say that a part is complete.

        Args:
            entry: what to remember of it.
        """
        for file in self._open.values():
            file.flush()
        paths = [path for path in self._directory.iterdir() if path.name != PARTS]
        sizes = {path.name: path.stat().st_size for path in paths}
        log = self._file(PARTS)
        log.write(json.dumps({**entry, "sizes": sizes}).encode() + b"\n")
        log.flush()

    def _file(self, name: str) -> IO[bytes]:
        if name not in self._open:
            self._open[name] = self._stack.enter_context((self._directory / name).open("ab"))
        return self._open[name]


def cut_to_complete(directory: Path) -> list[dict[str, Any]]:
    """Cut what is not complete from all files.

    Args:
        directory: of the files.

    Returns:
        The entries of the complete parts.
    """
    complete = _complete(directory)
    entries = [json.loads(line) for line in complete]
    sizes = entries[-1]["sizes"] if entries else {}
    sizes[PARTS] = sum(map(len, complete))
    for path in directory.iterdir():
        with path.open("r+b") as file:
            file.truncate(sizes.get(path.name, 0))
    return entries


def entries_of(directory: Path) -> list[dict[str, Any]]:
    """As `cut_to_complete`, without changing anything.

    Args:
        directory: of the files.
    """
    return [json.loads(line) for line in _complete(directory)]


def _complete(directory: Path) -> list[bytes]:
    log = directory / PARTS
    lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
    return [line for line in lines if line.endswith(b"\n")]
