"""Writes the full-text part of an index in bounded memory.

Words are counted in blocks of chunks. Each block waits on disk, its entries sorted by word and chunk. Then the blocks
are merged, a range of words at a time. What an older version has counted is one more source of blocks.
"""

import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tunesmith.retrieval.arrays import array_file
from tunesmith.retrieval.full_text import ARRAYS, COLUMNS, COMMON, FullText, bm25, words_of
from tunesmith.retrieval.lines import write_lines

BLOCK = 4_000_000
"""Words in a block, and entries that are merged at once: about 40 bytes of memory for each."""

SHARE = 0.25
"""A word that is in more than this share of the chunks has a column of scores."""

_FIELDS = ("words", "starts", "chunks", "counts")

Numbers = NDArray[np.int32]


class Entries(NamedTuple):
    """How often words are in chunks, sorted by word and then by chunk.

    Attributes:
        words: (entries,).
        chunks: (entries,).
        counts: (entries,).
    """

    words: Numbers
    chunks: Numbers
    counts: Numbers


def write_full_text(
    directory: Path,
    size: int,
    texts: Iterable[tuple[int, str]],
    old: FullText | None = None,
    numbers: Numbers | None = None,
) -> None:
    """Write the full-text part of an index.

    Args:
        directory: to create.
        size: how many chunks the index has.
        texts: chunks to count, each with its number in the index.
        old: an older version, whose other chunks are counted already.
        numbers: (old chunks,) the number of each in the index; -1 for those that are not in it.
    """
    directory.mkdir()
    blocks = _Blocks(directory / "blocks", size)
    if old is not None and numbers is not None:
        blocks.take_over(old, numbers)
    blocks.count(texts)
    _Merge(directory, blocks).write()
    shutil.rmtree(directory / "blocks")


class _Blocks:
    """Counted words, in files. Words are numbered in the order in which they are first seen."""

    def __init__(self, directory: Path, size: int) -> None:
        directory.mkdir()
        self._directory, self.count_of = directory, 0
        self.lengths = np.zeros(size, np.int32)
        self.numbers: dict[str, int] = {}

    def count(self, texts: Iterable[tuple[int, str]]) -> None:
        """Count the words of chunks."""
        found, starts, chunks = array("i"), array("q", [0]), array("i")
        numbers = self.numbers
        for chunk, text in texts:
            found.extend([numbers.setdefault(word, len(numbers)) for word in words_of(text)])
            starts.append(len(found))
            chunks.append(chunk)
            if len(found) >= BLOCK:
                self._add_counted(found, starts, chunks)
                found, starts, chunks = array("i"), array("q", [0]), array("i")
        if found:
            self._add_counted(found, starts, chunks)

    def _add_counted(self, found: "array[int]", starts: "array[int]", chunks: "array[int]") -> None:
        columns, rows = np.frombuffer(found, np.intc), np.frombuffer(chunks, np.intc)
        limits = np.frombuffer(starts, np.int64)
        self.lengths[rows] = np.diff(limits)
        is_in = np.zeros(len(self.numbers), bool)
        is_in[columns] = True
        words = np.flatnonzero(is_in).astype(np.int32)
        place = np.zeros(len(self.numbers), np.int32)
        place[words] = np.arange(len(words))
        shape = (len(rows), len(words))
        matrix = sparse.csr_matrix((np.ones(len(columns), np.int32), place[columns], limits), shape=shape)
        matrix.sum_duplicates()
        matrix = matrix.tocsc()
        self._add(words, np.diff(matrix.indptr), rows[matrix.indices], matrix.data)

    def take_over(self, old: FullText, numbers: Numbers) -> None:
        """Add what an older version has counted."""
        kept = numbers >= 0
        self.lengths[numbers[kept]] = old.lengths[kept]
        for first, last in ranges(np.diff(old.starts)):
            span = slice(int(old.starts[first]), int(old.starts[last]))
            words = np.repeat(np.arange(last - first), np.diff(old.starts[first : last + 1]))
            chunks = numbers[old.chunks[span]]
            is_kept = chunks >= 0
            sizes = np.bincount(words[is_kept], minlength=last - first)
            used = np.flatnonzero(sizes)
            names = (old.words[first + int(word)].decode() for word in used)
            known = np.array([self.numbers.setdefault(name, len(self.numbers)) for name in names], np.int32)
            self._add(known, sizes[used], chunks[is_kept], old.counts[span][is_kept])

    def _add(self, words: Numbers, sizes: NDArray[np.int64], chunks: Numbers, counts: Numbers) -> None:
        """Write a block: its words, how many entries each has, and these."""
        starts = np.concatenate([[0], np.cumsum(sizes)])
        for name, values in zip(_FIELDS, (words, starts, chunks, counts), strict=True):
            np.save(self._path(self.count_of, name), values)
        self.count_of += 1

    def _path(self, block: int, name: str) -> Path:
        return self._directory / f"{block}-{name}.npy"

    def sizes(self, ranks: Numbers) -> NDArray[np.int64]:
        """How many entries each word has, over all blocks (words,), by rank."""
        total = np.zeros(len(ranks), np.int64)
        for block in range(self.count_of):
            words, starts = (np.load(self._path(block, name)) for name in ("words", "starts"))
            total[ranks[words]] += np.diff(starts)
        return total

    def sort(self, ranks: Numbers) -> None:
        """Sort each block's words by rank, which becomes their number."""
        for block in range(self.count_of):
            words, starts, chunks, counts = (np.load(self._path(block, name)) for name in _FIELDS)
            order = np.argsort(ranks[words])
            sizes = np.diff(starts)[order]
            begins = starts[:-1][order]
            new_starts = np.concatenate([[0], np.cumsum(sizes)])
            places = np.arange(len(chunks)) + np.repeat(begins - new_starts[:-1], sizes)
            values = (ranks[words][order], new_starts, chunks[places], counts[places])
            for name, each in zip(_FIELDS, values, strict=True):
                np.save(self._path(block, name), each)

    def entries(self, first: int, last: int) -> Entries:
        """The entries of a range of words, which are sorted by rank."""
        parts = []
        for block in range(self.count_of):
            words, starts = (np.load(self._path(block, name), mmap_mode="r") for name in ("words", "starts"))
            low, high = np.searchsorted(words, [first, last])
            span = slice(int(starts[low]), int(starts[high]))
            chunks, counts = (np.load(self._path(block, name), mmap_mode="r")[span] for name in ("chunks", "counts"))
            parts.append(Entries(np.repeat(words[low:high], np.diff(starts[low : high + 1])), chunks, counts))
        found = Entries(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        order = np.argsort(found.words.astype(np.int64) * len(self.lengths) + found.chunks)
        return Entries(*(column[order] for column in found))


class _Merge:
    """From blocks to the files of the full-text part."""

    def __init__(self, directory: Path, blocks: _Blocks) -> None:
        self._directory, self._blocks = directory, blocks
        self._lengths = blocks.lengths

    def write(self) -> None:
        """Write all files."""
        words = sorted(self._blocks.numbers)
        write_lines(self._directory / "words.txt", (word.encode() for word in words))
        ranks = np.zeros(len(words), np.int32)
        ranks[[self._blocks.numbers[word] for word in words]] = np.arange(len(words))
        self._blocks.numbers.clear()
        sizes = self._blocks.sizes(ranks)
        self._blocks.sort(ranks)
        common = np.flatnonzero(sizes > SHARE * len(self._lengths))
        starts = np.concatenate([[0], np.cumsum(sizes)])
        for name, values in (("starts", starts), ("lengths", self._lengths)):
            np.save(self._directory / f"{name}.npy", values.astype(ARRAYS[name]))
        np.save(self._directory / f"{COMMON}.npy", common.astype(np.int32))
        with ExitStack() as files:
            shapes = {name: (int(starts[-1]),) for name in ("chunks", "counts", "scores")}
            writers = {
                name: files.enter_context(array_file(self._directory / f"{name}.npy", ARRAYS[name], shape))
                for name, shape in shapes.items()
            }
            shape = (len(common), len(self._lengths))
            columns = files.enter_context(array_file(self._directory / f"{COLUMNS}.npy", np.float32, shape))
            for first, last in ranges(sizes):
                entries = self._blocks.entries(first, last)
                scores = bm25(entries.counts, entries.words, entries.chunks, sizes, self._lengths)
                writers["chunks"](entries.chunks)
                writers["counts"](entries.counts)
                writers["scores"](scores)
                for word in common[(common >= first) & (common < last)]:
                    span = slice(*np.searchsorted(entries.words, [word, word + 1]))
                    column = np.zeros(len(self._lengths), np.float32)
                    column[entries.chunks[span]] = scores[span]
                    columns(column)


def ranges(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of words with at most `BLOCK` entries in all, or of a single word.

    Args:
        sizes: (words,) how many entries each has.

    Yields:
        The first word, and the one after the last.
    """
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + BLOCK, side="right")))
        yield first, last
        first = last
