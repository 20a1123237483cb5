"""Full-text search: BM25 as one sparse matrix of scores in memory-mapped files.

score(t, d) = ln(1 + (N − n + ½) / (n + ½)) · f / (f + k₁ (1 − b + b l / l̄)), in which f is how often the word t is in
the chunk d, l the words of d, l̄ their mean, n the chunks with t, N all chunks: Lucene's BM25 (Kamphuis et al. 2020,
table 1). Scores are computed when the index is written (Lù 2024, BM25S), so that a question costs one addition a chunk
and word.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tunesmith.retrieval.lines import Lines, write_lines

K1, B = 1.2, 0.75
"""Lucene's defaults."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""Letters and digits; Chinese and Japanese characters one by one, since no space parts their words."""

_ASCII_WORD = re.compile(r"[a-z0-9]+")

_ARRAYS = ("starts", "chunks", "counts", "scores", "lengths")


def words_of(text: str) -> list[str]:
    """The words of a text, as they are compared.

    Args:
        text: any.

    Returns:
        In order, with repetitions, in lower case (case-folded, NFKC); `read_text` is two words.
    """
    if text.isascii():  # the same words, in half the time
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class FullText:
    """The full-text part of an index.

    Args:
        directory: that `write_full_text` wrote.

    Raises:
        OSError: a file is missing.
    """

    def __init__(self, directory: Path) -> None:
        self._words = Lines(directory / "words.txt")
        loaded = {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        self._starts, self._chunks, self._scores = loaded["starts"], loaded["chunks"], loaded["scores"]
        self._counts, self.lengths = loaded["counts"], loaded["lengths"]

    def scores(self, question: str) -> NDArray[np.float32]:
        """The BM25 score of each chunk (chunks,); a word that occurs twice in the question counts twice."""
        scores = np.zeros(len(self.lengths), np.float32)
        for word in words_of(question):
            if (span := self._span(word)) is not None:
                scores[self._chunks[span]] += self._scores[span]  # a chunk is once among them
        return scores

    def rarity(self, word: str) -> float:
        """The weight of a word, ln(1 + (N − n + ½) / (n + ½)). One that is in no chunk weighs as if it were in one: in
        few documents, many common words are missing."""
        span = self._span(word)
        found = 1 if span is None else span.stop - span.start
        return float(np.log1p((len(self.lengths) - found + 0.5) / (found + 0.5)))

    def coverage(self, question: str, chunk: int) -> float:
        """The share of a question's words that a chunk holds, from 0 to 1, each weighted by its rarity."""
        weights = {word: self.rarity(word) for word in set(words_of(question))}
        covered = sum(weight for word, weight in weights.items() if self._holds(chunk, word))
        return covered / sum(weights.values()) if weights else 0.0

    def _holds(self, chunk: int, word: str) -> bool:
        span = self._span(word)
        if span is None:
            return False
        chunks = self._chunks[span]
        position = int(np.searchsorted(chunks, chunk))
        return position < len(chunks) and int(chunks[position]) == chunk

    def _span(self, word: str) -> slice | None:
        """Where the word's chunks and scores are."""
        number = self._words.find(word.encode())
        return None if number is None else slice(int(self._starts[number]), int(self._starts[number + 1]))

    def matrix(self) -> tuple[list[bytes], sparse.csr_matrix]:
        """The words, and how often each is in each chunk (chunks, words)."""
        words = [self._words[number] for number in range(len(self._words))]
        parts = (self._counts, self._chunks, self._starts)
        return words, sparse.csc_matrix(parts, shape=(len(self.lengths), len(words))).tocsr()


def counted(texts: Iterable[str]) -> tuple[list[bytes], sparse.csr_matrix]:
    """Count the words of texts.

    Args:
        texts: of chunks.

    Returns:
        The words, and how often each is in each text (texts, words).
    """
    numbers: dict[str, int] = {}
    found, starts = array("i"), array("q", [0])
    for text in texts:
        found.extend([numbers.setdefault(word, len(numbers)) for word in words_of(text)])
        starts.append(len(found))
    ones = np.ones(len(found), np.int32)
    shape = (len(starts) - 1, len(numbers))
    matrix = sparse.csr_matrix((ones, np.frombuffer(found, np.intc), np.frombuffer(starts, np.int64)), shape=shape)
    matrix.sum_duplicates()
    return [word.encode() for word in numbers], matrix


def write_full_text(
    directory: Path, parts: Sequence[tuple[Sequence[bytes], sparse.csr_matrix]], order: NDArray[np.int64]
) -> None:
    """Write the full-text part of an index.

    Args:
        directory: to create.
        parts: words and counts of chunks, as `counted` and `FullText.matrix` give them.
        order: (chunks,) the numbers of the parts' chunks, counted over all parts, in the index's order.
    """
    directory.mkdir()
    words = sorted({word for names, _ in parts for word in names})
    number = {word: index for index, word in enumerate(words)}
    renumbered = [_renumbered(matrix, [number[name] for name in names], len(words)) for names, matrix in parts]
    counts = sparse.vstack(renumbered, format="csr")[order]
    matrix = counts.tocsc()
    used = np.flatnonzero(np.diff(matrix.indptr))
    matrix = matrix[:, used]
    matrix.sort_indices()
    lengths = np.asarray(counts.sum(1), np.int32).reshape(-1)
    write_lines(directory / "words.txt", (words[index] for index in used))
    indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
    arrays = (*indices, matrix.data, bm25(matrix, lengths), lengths)
    for name, values in zip(_ARRAYS, arrays, strict=True):
        np.save(directory / f"{name}.npy", values)


def _renumbered(matrix: sparse.csr_matrix, columns: Sequence[int], width: int) -> sparse.csr_matrix:
    indices = np.array(columns, np.int32)[matrix.indices] if len(columns) else matrix.indices
    return sparse.csr_matrix((matrix.data, indices, matrix.indptr), shape=(matrix.shape[0], width))


def bm25(counts: sparse.csc_matrix, lengths: NDArray[np.int32]) -> NDArray[np.float32]:
    """BM25 of words in chunks.

    Args:
        counts: (chunks, words) how often each word is in each chunk.
        lengths: (chunks,) the words of each chunk.

    Returns:
        (entries,) the score of each entry of the counts, in its order.
    """
    chunks_with = np.diff(counts.indptr)
    rarity = np.log1p((counts.shape[0] - chunks_with + 0.5) / (chunks_with + 0.5)).astype(np.float32)
    mean = max(float(lengths.mean()), 1e-9) if len(lengths) else 1.0
    norms = (K1 * (1 - B + B * lengths / mean)).astype(np.float32)
    frequency: NDArray[np.float32] = counts.data.astype(np.float32)
    frequency /= frequency + norms[counts.indices]
    frequency *= np.repeat(rarity, chunks_with)
    return frequency
