"""The compiled text kernels, if the install could build them (hatch_build.py). Otherwise NumPy does the same.

They are apart from `tunesmith.ops.native`, so that checks need no PyTorch. `TUNESMITH_NATIVE=0` turns both off.
"""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.compiled_sources import are_current

LIBRARY = Path(__file__).parent / "kernels.so"

_POINTER, _LONG, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_ARGUMENTS: dict[str, list[Any]] = {
    "sketch_texts": [_POINTER, _POINTER, _LONG, *[_POINTER] * 7],
    "word_runs": [_POINTER, _POINTER, _LONG, _POINTER, _LONG, *[_POINTER] * 3],
    "index_words": [_POINTER, _POINTER, _LONG, _POINTER, _LONG],
    "traits_of": [_POINTER, _POINTER, _LONG, *[_POINTER] * 5, _LONG, *[_POINTER] * 6],
    "near_runs": [
        *[_POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _DOUBLE],
        *[_POINTER, _LONG, _POINTER, _POINTER, _POINTER],
    ],
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None if they are not available."""
    if os.environ.get("TUNESMITH_NATIVE") == "0" or not LIBRARY.exists():
        return None
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        if not are_current(loaded, LIBRARY.parent):
            return None
        for name, arguments in _ARGUMENTS.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, _LONG
    except OSError:  # built on another system
        return None
    return loaded


def pointer(array: NDArray[Any]) -> int:
    """The address of a contiguous array's first element."""
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


def call(name: str, *arguments: Any) -> int:
    """Call a kernel; an array passes its address."""
    loaded = library()
    assert loaded is not None
    converted = [pointer(each) if isinstance(each, np.ndarray) else each for each in arguments]
    return int(getattr(loaded, name)(*converted))
