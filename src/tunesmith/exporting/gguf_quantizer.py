"""Matrices in the kinds of numbers that llama.cpp computes with.

Floats and the five kinds in blocks of 32 are written by the gguf package, with the bits of llama.cpp's reference. The
others, and all with an importance matrix, by llama.cpp itself: the shared library of the package xllamacpp contains
its `ggml_quantize_chunk`.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from tunesmith.errors import UserError

BY_GGUF = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)
"""What the gguf package writes."""

INSTALL = "Install it: pip install 'tunesmith[gguf]'"

PIECE = 1 << 22
"""Numbers in one call of llama.cpp's quantizer: 16 MB, of which each thread has one at a time."""


def quantize(values: NDArray[np.float32], kind: Kind, importance: NDArray[np.float32] | None = None) -> NDArray[Any]:
    """A tensor in another kind of number.

    Args:
        values: (..., columns); in the kinds with blocks, columns is a multiple of the block.
        kind: of the result.
        importance: (columns,) the mean square of each column's input, which errors are weighted by. Default: equal.

    Returns:
        float32 or float16 (..., columns), or the bytes of each row as uint8 (..., bytes).

    Raises:
        UserError: the kind or the importance needs llama.cpp's quantizer, which is not installed.
    """
    if kind in BY_GGUF and (importance is None or kind in BY_GGUF[:3]):
        return gguf.quantize(values, kind)
    return _by_llama_cpp(np.ascontiguousarray(values, np.float32), kind, importance)


def bytes_of(shape: tuple[int, ...], kind: Kind) -> int:
    """The size of a tensor of that shape and kind."""
    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * size


def require_llama_cpp(what: str) -> None:
    """Raises:
    UserError: llama.cpp's quantizer is not installed, which `what` needs.
    """
    if library_file() is None:
        raise UserError(f"{what} needs llama.cpp's quantizer, from the package xllamacpp. {INSTALL}")


def _by_llama_cpp(values: NDArray[np.float32], kind: Kind, importance: NDArray[np.float32] | None) -> NDArray[Any]:
    """Rows in pieces, on all cores: the library holds no lock, and ctypes releases Python's."""
    require_llama_cpp(kind.name)
    columns = values.shape[-1]
    block, size = GGML_QUANT_SIZES[kind]
    rows = values.reshape(-1, columns)
    out = np.empty((len(rows), columns // block * size), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    step = max(1, PIECE // columns)

    def piece(first: int) -> None:
        part = rows[first : first + step]
        written = _library().ggml_quantize_chunk(
            int(kind), part.ctypes.data, out[first:].ctypes.data, 0, len(part), columns,
            None if weights is None else weights.ctypes.data,
        )  # fmt: skip
        if written != part.size // block * size:
            raise RuntimeError(f"ggml_quantize_chunk wrote {written} bytes of {kind.name}")

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(piece, range(0, len(rows), step)))
    return out.reshape(*values.shape[:-1], -1)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_file()))
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    return library


def library_file() -> Path | None:
    """xllamacpp's shared library; None if it is not installed."""
    spec = find_spec("xllamacpp")
    places = [] if spec is None else spec.submodule_search_locations or []
    files = (file for place in places for file in Path(place).iterdir() if file.suffix in (".so", ".pyd"))
    return next(files, None)
