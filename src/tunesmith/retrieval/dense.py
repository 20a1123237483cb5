"""Vectors of chunks in memory-mapped files, compared exactly.

Beside each vector v its int8 codes c and scale s are stored, v = s c + r. One pass over the codes, a quarter of the
vectors' bytes, gives s c · q, which differs from v · q by no more than ‖r‖ ‖q‖. So the best k chunks are among those
whose product is at most twice that below the k-th highest one; these few hundred are compared in fp32.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.retrieval.arrays import MappedArray, array_file
from tunesmith.retrieval.ranking import Ranked, Scores, Vectors, best

VECTORS, CODES, SCALES, ERRORS = "vectors.npy", "codes.npy", "scales.npy", "errors.npy"
"""Files: the vectors (chunks, hidden) in fp32; their codes (chunks, hidden) in int8; of each, its scale, and ‖r‖."""

LARGEST_CODE = 127

ROUNDING = 1e-5
"""Added to the error: of the question's codes, and of sums in fp32."""

ROWS = 8192
"""Vectors that are read at once."""

MANY = 500
"""Vectors after whose reading their pages are released."""


def write_vectors(directory: Path, size: int, hidden: int, parts: Iterable[Vectors]) -> None:
    """Write the vectors of an index.

    Args:
        directory: that exists.
        size: how many there are.
        hidden: their length.
        parts: (some, hidden) of them, in order.
    """
    scales, errors = np.zeros(size, np.float32), np.zeros(size, np.float32)
    first = 0
    with (
        array_file(directory / VECTORS, np.float32, (size, hidden)) as write_rows,
        array_file(directory / CODES, np.int8, (size, hidden)) as write_codes,
    ):
        for vectors in parts:
            span = slice(first, first + len(vectors))
            codes, scales[span] = coded(vectors)
            errors[span] = np.linalg.norm(vectors - codes * scales[span, None], axis=1)
            write_rows(vectors)
            write_codes(codes)
            first = span.stop
    np.save(directory / SCALES, scales)
    np.save(directory / ERRORS, errors)


def coded(vectors: Vectors) -> tuple[NDArray[np.int8], Scores]:
    """Vectors in int8.

    Args:
        vectors: (some, hidden).

    Returns:
        Codes (some, hidden), and the scale of each.
    """
    scales = np.maximum(np.abs(vectors).max(axis=1, initial=0.0) / LARGEST_CODE, 1e-30).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


class Dense:
    """The vectors of an index.

    Args:
        directory: in which `write_vectors` wrote.

    Raises:
        OSError: a file is missing.
    """

    def __init__(self, directory: Path) -> None:
        self._mapped = MappedArray(directory / VECTORS)
        self.vectors: Vectors = self._mapped.values
        self._codes: NDArray[np.int8] | None = None
        if (directory / CODES).exists():  # indexes of older versions have none
            self._codes, self._scales = (np.load(directory / name, mmap_mode="r") for name in (CODES, SCALES))
            self._error = float(np.load(directory / ERRORS).max(initial=0.0)) + ROUNDING

    def __len__(self) -> int:
        """How many there are."""
        return len(self.vectors)

    def best(self, question: Vectors, count: int) -> Ranked:
        """The chunks with the highest cosines.

        Args:
            question: its vector (hidden,), of length 1.
            count: how many at most.

        Returns:
            The chunks, in order.
        """
        candidates = self._candidates(question, count)
        found = best(self.cosines(question, candidates), count)
        return Ranked(candidates[found.chunks], found.scores)

    def cosines(self, question: Vectors, chunks: NDArray[np.int64]) -> Scores:
        """The cosines of chunks with a question.

        Args:
            question: its vector (hidden,), of length 1.
            chunks: (some,) their numbers.

        Returns:
            (some,).
        """
        parts = [self.vectors[chunks[at : at + ROWS]] @ question for at in range(0, len(chunks), ROWS)]
        if len(chunks) >= MANY:
            self._mapped.release()
        return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)

    def _candidates(self, question: Vectors, count: int) -> NDArray[np.int64]:
        """Chunks among which the best ones are."""
        from tunesmith.ops.inner_products import inner_products, is_available

        if self._codes is None or count >= len(self) or not is_available():
            return np.arange(len(self))
        products = inner_products(self._codes, self._scales, question)
        least = best(products, count).scores[-1] - 2 * self._error
        return np.flatnonzero(products >= least)
