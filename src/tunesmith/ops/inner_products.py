"""Inner products of many int8 vectors with one vector, in one pass over memory."""

import numpy as np
from numpy.typing import NDArray

from tunesmith.ops import native

LARGEST_CODE = 127
"""Of the int8 vectors, in either sign."""

_LARGEST_SUM = 2**31 / (LARGEST_CODE + 1)
"""Of the question's absolute codes, so that no sum overflows int32."""


def inner_products_reference(
    codes: NDArray[np.int8], scales: NDArray[np.float32], question: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The definition, in float64. `inner_products` is tested against this.

    Args:
        codes: (vectors, hidden).
        scales: (vectors,); a vector is its codes · its scale.
        question: (hidden,).

    Returns:
        (vectors,).
    """
    products: NDArray[np.float32] = (codes.astype(np.float64) @ question * scales).astype(np.float32)
    return products


def is_available() -> bool:
    """Whether the compiled kernels are there."""
    return native.library() is not None


def rounded(question: NDArray[np.float32]) -> tuple[NDArray[np.int16], float]:
    """A vector in int16, and its scale.

    Args:
        question: (hidden,).

    Returns:
        Codes (hidden,) and scale: the vector is about their product.
    """
    most, total = float(np.abs(question).max(initial=0.0)), float(np.abs(question).sum())
    scale = max(most / (2**15 - 1), total / (_LARGEST_SUM - len(question)), 1e-30)
    return np.rint(question / scale).astype(np.int16), scale


def inner_products(
    codes: NDArray[np.int8], scales: NDArray[np.float32], question: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`inner_products_reference` with the question rounded to int16 (`rounded`), on PyTorch's threads.

    Args:
        codes: (vectors, hidden), contiguous; may be memory-mapped.
        scales: (vectors,), contiguous.
        question: (hidden,).

    Returns:
        (vectors,).
    """
    units, scale = rounded(question)
    products = np.empty(len(codes), np.float32)
    pointers = (array.ctypes.data for array in (codes, scales, units))
    native.call_named("inner_products_int8", *pointers, *codes.shape, products.ctypes.data)
    products *= np.float32(scale)
    return products
