"""How alike questions are: by their words, or by the vectors of an encoder."""

from collections.abc import Sequence
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tunesmith.retrieval.encoder import Encoder
from tunesmith.retrieval.full_text import bm25, words_of

Scores = NDArray[np.float32]


class Similarity(Protocol):
    """Compares texts with others, and among themselves."""

    def to(self, text: str) -> Scores:
        """How alike each text is to another one, (texts,): the higher, the more.

        Args:
            text: the other one.
        """

    def among(self) -> Scores:
        """(texts, texts): the cosine of each text with each other one, at least 0."""


class WordSimilarity:
    """By words: a text is to a question as a chunk is in full-text search (BM25, `tunesmith.retrieval.full_text`).

    Args:
        texts: to compare with.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._number: dict[str, int] = {}
        read = [[self._number.setdefault(word, len(self._number)) for word in words_of(text)] for text in texts]
        lengths = np.array([len(words) for words in read], np.int32)
        words = np.fromiter(chain.from_iterable(read), np.int32)
        ones, shape = np.ones(len(words), np.int32), (len(texts), len(self._number))
        matrix = sparse.coo_matrix((ones, (np.repeat(np.arange(len(texts)), lengths), words)), shape=shape).tocsc()
        sizes = np.diff(matrix.indptr)
        scores = bm25(matrix.data, np.repeat(np.arange(len(sizes)), sizes), matrix.indices, sizes, lengths)
        self._scores = sparse.csc_matrix((scores, matrix.indices, matrix.indptr), shape=shape)

    def to(self, text: str) -> Scores:
        """As `Similarity.to`: the BM25 score of each text; a word that occurs twice in `text` counts twice."""
        numbers = [self._number[word] for word in words_of(text) if word in self._number]
        found: Scores = np.asarray(self._scores[:, numbers].sum(1), np.float32).reshape(-1)
        return found

    def among(self) -> Scores:
        """As `Similarity.among`, of the texts' vectors of BM25 scores."""
        rows = self._scores.tocsr().astype(np.float64)
        lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).reshape(-1))
        scaled = sparse.diags(1 / np.maximum(lengths, 1e-12)) @ rows
        found: Scores = (scaled @ scaled.T).toarray().astype(np.float32)
        return found


class VectorSimilarity:
    """By the vectors of an encoder, which reads all texts as questions.

    Args:
        texts: to compare with.
        encoder: embeds them.
    """

    def __init__(self, texts: Sequence[str], encoder: Encoder) -> None:
        self._encoder = encoder
        self._vectors = np.stack([encoder.question(text) for text in texts])

    def to(self, text: str) -> Scores:
        """As `Similarity.to`: the cosine."""
        found: Scores = self._vectors @ self._encoder.question(text)
        return found

    def among(self) -> Scores:
        """As `Similarity.among`."""
        found: Scores = np.maximum(self._vectors @ self._vectors.T, 0)
        return found


def representatives(alike: Scores, count: int) -> list[int]:
    """Texts that together stand for all: the greedy maximum of Σᵢ maxⱼ alike(i, j) over the chosen j (facility
    location), at least 63 % of the best possible sum (Nemhauser et al. 1978).

    Args:
        alike: (texts, texts), at least 0.
        count: how many are chosen.

    Returns:
        Their numbers, in the order in which they are chosen; of equal ones, the first.
    """
    covered = np.zeros(len(alike), np.float32)
    chosen: list[int] = []
    while len(chosen) < min(count, len(alike)):
        gains = np.maximum(alike - covered[:, None], 0).sum(0)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        covered = np.maximum(covered, alike[:, chosen[-1]])
    return chosen
