"""Arrays that are written piece by piece, so that they need not fit into memory."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray


@contextmanager
def array_file(path: Path, dtype: DTypeLike, shape: Sequence[int]) -> Iterator[Callable[[NDArray[np.generic]], None]]:
    """Write a `.npy` file in pieces.

    Args:
        path: to write.
        dtype: of the values.
        shape: of the whole; the pieces are parts of it along the first dimension.

    Yields:
        A function that appends a piece.
    """
    kind = np.dtype(dtype)
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)

        def write(piece: NDArray[np.generic]) -> None:
            file.write(np.ascontiguousarray(piece, kind).reshape(-1).view(np.uint8).data)

        yield write


class MappedArray:
    """A memory-mapped `.npy` file of fp32 of which few rows are read at a time.

    Args:
        path: of the file.

    Raises:
        OSError: it is missing.
    """

    def __init__(self, path: Path) -> None:
        about = np.load(path, mmap_mode="r")
        with path.open("rb") as file:
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.values: NDArray[np.float32] = np.frombuffer(self._pages, np.float32, about.size, about.offset).reshape(
            about.shape
        )

    def release(self) -> None:
        """Return the pages that were read to the system, which keeps them while it has room. With a page, its
        neighbors are mapped too, so that a few thousand rows would keep the whole file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)


def array_shape(path: Path) -> tuple[int, ...]:
    """The shape of the array in a `.npy` file."""
    return np.load(path, mmap_mode="r").shape  # type: ignore[no-any-return]


def read_rows(path: Path, first: int, count: int) -> NDArray[np.float32]:
    """Read some rows of a `.npy` file of fp32, which does not stay in memory.

    Args:
        path: of the file.
        first: the first row.
        count: how many.

    Returns:
        (count, columns).
    """
    return np.array(np.load(path, mmap_mode="r")[first : first + count])
