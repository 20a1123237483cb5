"""`tunesmith.search`: the chunks of an index that fit a question."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.errors import UserError
from tunesmith.retrieval.chunk import Sentence
from tunesmith.retrieval.generation import Generation, current
from tunesmith.retrieval.ranking import DEPTH, WAYS, WEIGHT, Candidates, Ranked, Vectors, best

if TYPE_CHECKING:
    from tunesmith.retrieval.encoder import Encoder
    from tunesmith.retrieval.rerank import Reranker

READ = 50
"""Chunks that a re-ranker reads."""

THRESHOLD = 0.3
"""The least relevance (`Index.relevance`) of a chunk that may hold an answer, unless it is tuned."""

TUNED = "tuned.json"
"""The file in an index with what was tuned."""

AUTO = "auto"
"""The tuned way, else the weighted sum, else (without vectors) full text."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found.

    Attributes:
        file: relative to the indexed directory.
        lines: its first and last line, from 1; in a PDF's extracted text.
        score: of the way it was found in; scores of different ways or questions cannot be compared.
        text: of the chunk.
        headings: above it, the outermost first.
        bytes: its first byte in the file, and the byte after its last.
        page: of a PDF, from 1.
        chunk: its number in this version of the index.
        sentences: of its text.
    """

    file: str
    lines: tuple[int, int]
    score: float
    text: str
    headings: tuple[str, ...]
    bytes: tuple[int, int]
    page: int | None
    chunk: int
    sentences: tuple[Sentence, ...]

    def described(self) -> dict[str, Any]:
        """As JSON: `file`, `lines`, `score`, `text`, `headings`, `bytes`, and `page` if the format has pages."""
        values = {name: getattr(self, name) for name in ("file", "lines", "score", "text", "headings", "bytes")}
        return values | ({} if self.page is None else {"page": self.page})


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was chosen on questions (`tunesmith.retrieval.tuning.tune`).

    Attributes:
        mode: the way to search.
        weight: of the cosine in the weighted sum.
        threshold: the least relevance of the best chunk for an answer to be found.
        questions: on which it was chosen.
    """

    mode: str
    weight: float
    threshold: float
    questions: int


class Index:
    """An index, open for searching: one consistent version of it, whatever a writer does meanwhile.

    Args:
        path: of the index.

    Raises:
        UserError: there is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        version = current(self.path)
        if version is None:
            raise UserError(f"{self.path} is not an index. Build one: tunesmith index DIR --output {self.path}")
        self.version: Generation = version

    @cached_property
    def tuned(self) -> Tuned | None:
        """What was tuned on questions; None if nothing was, or if the index has no vectors any more."""
        file = self.path / TUNED
        if not file.exists():
            return None
        tuned = Tuned(**json.loads(file.read_text(encoding="utf-8")))
        return tuned if tuned.mode == "text" or self.version.dense is not None else None

    @cached_property
    def encoder(self) -> "Encoder | None":
        """What its vectors are from; None for full text alone.

        Raises:
            UserError: it is no longer there, or has changed since.
        """
        settings = self.version.settings
        if settings.encoder is None:
            return None
        from tunesmith.retrieval.encoder import Encoder

        try:
            encoder = Encoder(settings.encoder)
        except UserError as error:
            raise UserError(f"The encoder of {self.path} cannot be used: {error} Or search with --mode text.") from None
        if encoder.fingerprint != settings.fingerprint:
            raise UserError(
                f"{settings.encoder} has changed since {self.path} was built. "
                f"Build it again: tunesmith index {self.version.source} --output {self.path}"
            )
        return encoder

    def way(self, mode: str = AUTO) -> str:
        """The way that a mode stands for.

        Args:
            mode: a name in `ranking.WAYS`, or `auto`.

        Returns:
            The name.

        Raises:
            UserError: there is no such way, or the index has no vectors for it.
        """
        has_vectors = self.version.dense is not None
        if mode == AUTO:
            return self.tuned.mode if self.tuned is not None else "weighted" if has_vectors else "text"
        if mode not in WAYS:
            raise UserError(f"--mode {mode} is not one of {', '.join((AUTO, *WAYS))}.")
        if mode != "text" and not has_vectors:
            raise UserError(
                f"{self.path} has no vectors, which --mode {mode} needs. Build it with an encoder: "
                f"tunesmith index {self.version.source} --output {self.path} --encoder all-minilm-l6-v2"
            )
        return mode

    def candidates(self, question: str, depth: int = DEPTH, way: str | None = None) -> Candidates:
        """The best chunks by BM25 and by the cosine, with both scores.

        Args:
            question: in words.
            depth: how many of each order.
            way: for which they are; its other score is 0 or None. None: for all that the index has.

        Returns:
            The candidates.
        """
        empty = np.zeros(0, np.int64)
        dense = None if way == "text" else self.version.dense
        text = None if way == "dense" else self.version.full_text.scores(question)
        by_words = empty if text is None else best(text, depth, above=0).chunks
        by_meaning = empty if dense is None else dense.best(self._vector(question), depth).chunks
        found = np.union1d(by_words, by_meaning)
        scores = np.zeros(len(found), np.float32) if text is None else text[found]
        return Candidates(found, scores, None if dense is None else dense.cosines(self._vector(question), found))

    @lru_cache(maxsize=1)  # noqa: B019  as `_reranker`; the chunks and their relevance need the same vector
    def _vector(self, question: str) -> Vectors:
        assert self.encoder is not None
        return self.encoder.question(question)

    @property
    def threshold(self) -> float:
        """The least relevance of the best chunk for an answer to be found."""
        return THRESHOLD if self.tuned is None else self.tuned.threshold

    @property
    def weight(self) -> float:
        """Of the cosine in the weighted sum."""
        return WEIGHT if self.tuned is None or self.tuned.mode != "weighted" else self.tuned.weight

    def relevance(self, question: str, hits: Sequence[Hit]) -> float:
        """How well the best of some chunks fits a question, comparable between questions.

        Args:
            question: in words.
            hits: as found.

        Returns:
            The highest cosine; without vectors, the largest share of the question's words, by their rarity. 0 without
            chunks.
        """
        return self.relevance_of(question, [hit.chunk for hit in hits])

    def relevance_of(self, question: str, chunks: Sequence[int]) -> float:
        """As `relevance`, by the numbers of the chunks."""
        if not chunks:
            return 0.0
        if self.version.dense is None:
            return max(self.version.full_text.coverage(question, chunk) for chunk in chunks)
        return float(self.version.dense.cosines(self._vector(question), np.array(chunks)).max())

    @lru_cache(maxsize=1)  # noqa: B019  an index lives as long as its process
    def _reranker(self, name: str) -> "Reranker":
        from tunesmith.retrieval.rerank import Reranker

        return Reranker(name)

    def search(self, question: str, k: int = 5, mode: str = AUTO, rerank: str | None = None) -> list[Hit]:
        """The chunks that fit a question.

        Args:
            question: in words.
            k: how many at most.
            mode: `text` (BM25), `dense` (cosine), `rrf` (reciprocal rank fusion), `weighted` (sum), or `auto`.
            rerank: a cross-encoder that orders the first 50 chunks anew; None: none.

        Returns:
            The chunks, the best first.

        Raises:
            UserError: the question is empty, or the index has no vectors for this mode.
        """
        if not question.strip():
            raise UserError("There is no question. Give some words to search for.")
        way = self.way(mode)
        reranker = None if rerank is None else self._reranker(rerank)
        count = k if reranker is None else max(k, READ)
        found = self.hits(self.candidates(question, max(DEPTH, count), way).ranked(way, self.weight, count))
        return found if reranker is None else reranker.rerank(question, found, k)

    def hits(self, ranked: Ranked) -> list[Hit]:
        """Ranked chunks with their texts."""
        pairs = zip(ranked.chunks.tolist(), ranked.scores.tolist(), strict=True)
        return [self.hit(chunk, score) for chunk, score in pairs]

    def hit(self, number: int, score: float = 0.0) -> Hit:
        """A chunk by its number."""
        chunk = self.version.chunk(number)
        return Hit(
            chunk["file"], tuple(chunk["lines"]), score, chunk["text"], tuple(chunk["headings"]), tuple(chunk["bytes"]),
            chunk["page"], number, tuple(Sentence(*each) for each in chunk["sentences"]),
        )  # fmt: skip


def search(index: str | Path, question: str, k: int = 5, mode: str = AUTO, rerank: str | None = None) -> list[Hit]:
    """The chunks of an index that fit a question. For several questions, open the `Index` once.

    Args:
        index: its directory.
        question: in words.
        k: how many at most.
        mode: `text` (BM25), `dense` (cosine), `rrf` (reciprocal rank fusion), `weighted` (sum), or `auto`: the one that
            was tuned on your questions, else the weighted sum, or full text if the index has no vectors.
        rerank: a cross-encoder (a model directory or a hub name) that orders the first 50 chunks anew; None: none.

    Returns:
        The chunks, the best first.

    Raises:
        UserError: there is no such index, the question is empty, or the index has no vectors for this mode.
    """
    return Index(index).search(question, k, mode, rerank)
