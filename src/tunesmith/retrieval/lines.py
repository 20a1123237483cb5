"""Lines of a file by their number, without reading the file."""

import mmap
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write lines, and beside them an array with the offset of each.

    Args:
        path: to write; the array's name has `.npy` appended.
        lines: without line ends.

    Returns:
        How many there are.
    """
    offsets = array("q", [0])
    with path.open("wb") as file:
        for line in lines:
            file.write(line + b"\n")
            offsets.append(offsets[-1] + len(line) + 1)
    np.save(_offsets(path), np.frombuffer(offsets, np.int64))
    return len(offsets) - 1


class Lines:
    """Lines that `write_lines` wrote, in memory-mapped files.

    Args:
        path: of the lines.

    Raises:
        OSError: a file is missing.
    """

    def __init__(self, path: Path) -> None:
        self._offsets = np.load(_offsets(path), mmap_mode="r")
        with path.open("rb") as file:
            is_empty = path.stat().st_size == 0
            self._text: mmap.mmap | bytes = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._text[int(self._offsets[number]) : int(self._offsets[number + 1]) - 1]

    def release(self) -> None:
        """Return the pages that were read to the system, which keeps them only while it has room."""
        if isinstance(self._text, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._text.madvise(mmap.MADV_DONTNEED)

    def find(self, line: bytes) -> int | None:
        """The number of a line, if the lines are sorted; None if it is not among them."""
        number = bisect_left(self, line)
        return number if number < len(self) and self[number] == line else None


def _offsets(path: Path) -> Path:
    return path.with_name(f"{path.name}.npy")
