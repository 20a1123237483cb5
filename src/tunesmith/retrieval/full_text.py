"""Full-text search: BM25 as one sparse matrix of scores in memory-mapped files.

score(t, d) = ln(1 + (N − n + ½) / (n + ½)) · f / (f + k₁ (1 − b + b l / l̄)), in which f is how often the word t is in
the chunk d, l the words of d, l̄ their mean, n the chunks with t, N all chunks: Lucene's BM25 (Kamphuis et al. 2020,
table 1). Scores are computed when the index is written (Lù 2024, BM25S), so that a question costs one addition a chunk
and word. Words that are in many chunks have a dense column of scores too, whose addition is several times faster.
"""

import re
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.retrieval.lines import Lines

K1, B = 1.2, 0.75
"""Lucene's defaults."""

Sizes = NDArray[np.int32] | NDArray[np.int64]

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""Letters and digits; Chinese and Japanese characters one by one, since no space parts their words."""

_ASCII_WORD = re.compile(r"[a-z0-9]+")

ARRAYS = {"starts": np.int64, "chunks": np.int32, "counts": np.int32, "scores": np.float32, "lengths": np.int32}
"""Files and their types: of each word, where its chunks begin; the chunks with it, in order, how often it is in each,
and its score there. Of each chunk, how many words it has."""

COMMON, COLUMNS = "common", "columns"
"""Files: the numbers of common words, in order; their scores in all chunks (common words, chunks)."""


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


def bm25(
    counts: NDArray[np.int32], words: NDArray[np.int32], chunks: NDArray[np.int32], sizes: Sizes, lengths: Sizes
) -> NDArray[np.float32]:
    """The scores of words in chunks.

    Args:
        counts: (entries,) how often a word is in a chunk.
        words: (entries,) the number of the word.
        chunks: (entries,) the number of the chunk.
        sizes: (words,) how many chunks have each word.
        lengths: (chunks,) how many words each chunk has.

    Returns:
        (entries,).
    """
    mean = max(float(lengths.mean()), 1e-9) if len(lengths) else 1.0
    norms = (K1 * (1 - B + B * lengths / mean)).astype(np.float32)
    rarity = np.log1p((len(lengths) - sizes + 0.5) / (sizes + 0.5)).astype(np.float32)
    scores: NDArray[np.float32] = counts.astype(np.float32)
    scores /= scores + norms[chunks]
    scores *= rarity[words]
    return scores


class FullText:
    """The full-text part of an index.

    Args:
        directory: that `write_full_text` wrote.

    Raises:
        OSError: a file is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.words = Lines(directory / "words.txt")
        loaded = {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        self.starts, self.chunks, self._scores = loaded["starts"], loaded["chunks"], loaded["scores"]
        self.counts, self.lengths = loaded["counts"], loaded["lengths"]
        common, columns = directory / f"{COMMON}.npy", directory / f"{COLUMNS}.npy"
        has_columns = common.exists()  # indexes of older versions have none
        self._common = {word: place for place, word in enumerate(np.load(common).tolist())} if has_columns else {}
        self._columns = np.load(columns, mmap_mode="r") if self._common else None

    def scores(self, question: str) -> NDArray[np.float32]:
        """The BM25 score of each chunk (chunks,); a word that occurs twice in the question counts twice."""
        scores = np.zeros(len(self.lengths), np.float32)
        for word in words_of(question):
            number = self.words.find(word.encode())
            if number is None:
                continue
            if number in self._common:
                assert self._columns is not None
                scores += self._columns[self._common[number]]
            else:
                span = self._span(number)
                scores[self.chunks[span]] += self._scores[span]  # a chunk is once among them
        return scores

    def rarity(self, word: str) -> float:
        """The weight of a word, ln(1 + (N − n + ½) / (n + ½)). One that is in no chunk weighs as if it were in one: in
        few documents, many common words are missing."""
        number = self.words.find(word.encode())
        found = 1 if number is None else int(self.starts[number + 1] - self.starts[number])
        return float(np.log1p((len(self.lengths) - found + 0.5) / (found + 0.5)))

    def coverage(self, question: str, chunk: int) -> float:
        """The share of a question's words that a chunk holds, from 0 to 1, each weighted by its rarity."""
        weights = {word: self.rarity(word) for word in set(words_of(question))}
        covered = sum(weight for word, weight in weights.items() if self._holds(chunk, word))
        return covered / sum(weights.values()) if weights else 0.0

    def _holds(self, chunk: int, word: str) -> bool:
        number = self.words.find(word.encode())
        if number is None:
            return False
        chunks = self.chunks[self._span(number)]
        position = int(np.searchsorted(chunks, chunk))
        return position < len(chunks) and int(chunks[position]) == chunk

    def _span(self, number: int) -> slice:
        """Where a word's chunks and scores are."""
        return slice(int(self.starts[number]), int(self.starts[number + 1]))
