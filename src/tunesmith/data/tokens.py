"""Tokenised examples as flat arrays: what is packed, cached and counted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.example import Source

Tokens = tuple[NDArray[np.int32], NDArray[np.bool_], Source]
"""One example: ids (n,), which of them are learnt (n,), and its row."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Rows of token ids with what is learnt of each, and where each came from.

    Attributes:
        ids: (tokens,) int32, all rows end to end.
        learnt: (tokens,) bool.
        offsets: (rows + 1,) int64: row i is ids[offsets[i]:offsets[i + 1]].
        files: the files' names; `file` indexes them.
        file: (rows,) int32.
        row: (rows,) int64, 1-based within the file.
        features: (rows, hidden) of a frozen body, where it has been computed once for all; then the ids are not read.
    """

    ids: NDArray[np.int32]
    learnt: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    files: tuple[str, ...]
    file: NDArray[np.int32]
    row: NDArray[np.int64]
    features: NDArray[np.float32] | None = None

    @classmethod
    def build(cls, rows: Iterable[Tokens]) -> "TokenTable":
        ids, learnt, lengths, file, row = [], [], [0], [], []
        files: dict[str, int] = {}
        for token_ids, mask, source in rows:
            ids.append(token_ids)
            learnt.append(mask)
            lengths.append(len(token_ids))
            file.append(files.setdefault(source.file, len(files)))
            row.append(source.row)
        return cls(
            np.concatenate(ids) if ids else np.zeros(0, np.int32),
            np.concatenate(learnt) if learnt else np.zeros(0, np.bool_),
            np.cumsum(np.array(lengths, np.int64)),
            tuple(files),
            np.array(file, np.int32),
            np.array(row, np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.ids[start:end], self.learnt[start:end]

    def __iter__(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def learnt_tokens(self) -> int:
        """Tokens that some position predicts: a row's first token has none before it."""
        first = np.zeros(len(self.ids), np.bool_)
        first[self.offsets[:-1][self.lengths > 0]] = True
        return int((self.learnt & ~first).sum())

    def source(self, index: int) -> Source:
        return Source(self.files[self.file[index]], int(self.row[index]))
