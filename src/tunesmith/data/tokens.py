"""Tokenized examples as flat arrays, which are packed, cached and counted."""

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.example import Source

Targets = tuple[float, ...]
"""The targets of a row's loss positions if they are not the next tokens: class indices, values."""

RowCompletions = tuple[tuple[int, ...], tuple[float, ...]]
"""The completions of a row: the lengths of its beginning and of each completion, and the completions' scores."""

Tokens = tuple[NDArray[np.int32], NDArray[np.bool_], Source, *tuple[Any, ...]]
"""One example: ids (n,), loss mask (n,), its row, then its targets if it has some (or None), then its completions."""


@dataclass(frozen=True, slots=True)
class Completions:
    """The parts of rows that hold several completions: a beginning, which all share, and what follows it.

    Attributes:
        offsets: (rows + 1,) int64: row i has the completions offsets[i] to offsets[i + 1].
        lengths: (rows + completions,) int32: of each row, the tokens of its beginning, then of each completion.
        scores: (completions,) float32, higher is better.
        reference: (completions,) float32: what the starting model says of each, such as its log p in nats; NaN until
            it is computed, in place, before the first step.
    """

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int32]
    scores: NDArray[np.float32]
    reference: NDArray[np.float32]

    def of(self, row: int) -> RowCompletions:
        """The lengths and scores of a row."""
        start, end = self.offsets[row], self.offsets[row + 1]
        return tuple(self.lengths[start + row : end + row + 1].tolist()), tuple(self.scores[start:end].tolist())

    def reference_of(self, row: int) -> NDArray[np.float32]:
        """(completions,) of a row."""
        return self.reference[self.offsets[row] : self.offsets[row + 1]]

    @property
    def texts(self) -> NDArray[np.int64]:
        """(rows,) the tokens of each row's longest text: its beginning and the longest completion."""
        return np.array(
            [lengths[0] + max(lengths[1:]) for lengths, _ in map(self.of, range(len(self.offsets) - 1))], np.int64
        )


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Rows of token ids, each with its loss mask, targets and source.

    Attributes:
        ids: (tokens,) int32, all rows concatenated.
        loss_mask: (tokens,) bool.
        offsets: (rows + 1,) int64: row i is ids[offsets[i]:offsets[i + 1]].
        files: the files' names; `file` indexes them.
        file: (rows,) int32.
        row: (rows,) int64, 1-based within the file.
        targets: float32, all rows' targets concatenated; None if the next token is the target.
        target_offsets: (rows + 1,) int64: row i has targets[target_offsets[i]:target_offsets[i + 1]].
        features: (rows, hidden) float32 hidden states of a frozen body, if they are precomputed; the ids are then not
            read.
        completions: the parts of the rows, if they hold several completions of one beginning.
        columns: (tokens,) float32 by name: what the objective knows of each token, such as its advantage.
        source_rows: how many rows each source of a mix has, which follow one another; empty if they are not known.
    """

    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    files: tuple[str, ...]
    file: NDArray[np.int32]
    row: NDArray[np.int64]
    targets: NDArray[np.float32] | None = None
    target_offsets: NDArray[np.int64] | None = None
    features: NDArray[np.float32] | None = None
    completions: Completions | None = None
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    source_rows: tuple[int, ...] = ()

    @classmethod
    def build(cls, rows: Iterable[Tokens]) -> "TokenTable":
        builder = TableBuilder()
        for row in rows:
            builder.add(*row)
        return builder.table()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.ids[start:end], self.loss_mask[start:end]

    def __iter__(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def text_lengths(self) -> NDArray[np.int64]:
        """(rows,) the tokens of each row's longest text."""
        return self.lengths if self.completions is None else self.completions.texts

    @property
    def loss_tokens(self) -> int:
        """Tokens with loss, or rows if texts are compared. Where the next token is the target, a row's first token has
        no loss, because no token comes before it."""
        if self.completions is not None:
            return int(np.count_nonzero(self.loss_mask))
        if self.targets is not None:
            return int(np.count_nonzero(self.loss_mask)) if len(self.targets) else len(self)
        starts = self.offsets[:-1][self.lengths > 0]
        return int(np.count_nonzero(self.loss_mask)) - int(np.count_nonzero(self.loss_mask[starts]))

    def rows(self) -> Iterator[Tokens]:
        """Each row with its source, its targets and its completions if it has some."""
        return map(self.tokens_of, range(len(self)))

    def tokens_of(self, index: int) -> Tokens:
        """A row with its source, its targets and its completions if it has some."""
        targets = None if self.targets is None else tuple(self.targets_of(index).tolist())
        if self.completions is not None:
            return (*self[index], self.source(index), targets, self.completions.of(index))
        return (*self[index], self.source(index), *(() if targets is None else (targets,)))

    def take(self, indices: NDArray[np.int64]) -> "TokenTable":
        """The rows with these indices, in that order."""
        return TokenTable.build(self.tokens_of(index) for index in indices.tolist())

    def targets_of(self, index: int) -> NDArray[np.float32]:
        """(values,) the row's targets; only for tables with targets."""
        assert self.targets is not None
        assert self.target_offsets is not None
        return self.targets[self.target_offsets[index] : self.target_offsets[index + 1]]

    def source(self, index: int) -> Source:
        return Source(self.files[self.file[index]], int(self.row[index]))


SPOOL = 2**22
"""Entries kept in memory; further ones go to an unnamed temporary file, which the system removes."""


class TableBuilder:
    """Builds a `TokenTable` row by row. Its memory does not grow with the tokens: 20 bytes per row, and `SPOOL`."""

    def __init__(self) -> None:
        self._ids = _Spool(np.dtype(np.int32))
        self._loss_mask = _Spool(np.dtype(np.bool_))
        self._offsets = array("q", [0])
        self._file = array("i")
        self._row = array("q")
        self._files: dict[str, int] = {}
        self._targets = _Spool(np.dtype(np.float32))
        self._target_offsets = array("q", [0])
        self._has_targets = False
        self._completions = array("q", [0])
        self._lengths = array("i")
        self._scores = array("f")

    def add(
        self,
        ids: NDArray[np.int32],
        loss_mask: NDArray[np.bool_],
        source: Source,
        targets: Targets | None = None,
        completions: RowCompletions | None = None,
    ) -> None:
        """Add a row: `Tokens`."""
        self._ids.add(ids)
        self._loss_mask.add(loss_mask)
        self._offsets.append(self._offsets[-1] + len(ids))
        self._file.append(self._files.setdefault(source.file, len(self._files)))
        self._row.append(source.row)
        if targets is not None:
            self._has_targets = True
            self._targets.add(np.asarray(targets, np.float32))
            self._target_offsets.append(self._target_offsets[-1] + len(targets))
        if completions is not None:
            lengths, scores = completions
            self._lengths.extend(lengths)
            self._scores.extend(scores)
            self._completions.append(len(self._scores))

    def extend(self, table: TokenTable) -> None:
        """Add all rows of a table."""
        self._ids.add(table.ids)
        self._loss_mask.add(table.loss_mask)
        self._offsets.extend((table.offsets[1:] + self._offsets[-1]).tolist())
        files = [self._files.setdefault(name, len(self._files)) for name in table.files]
        self._file.extend(np.asarray(files, np.int32)[table.file].tolist())
        self._row.extend(table.row.tolist())
        if table.targets is not None and table.target_offsets is not None:
            self._has_targets = True
            self._targets.add(table.targets)
            self._target_offsets.extend((table.target_offsets[1:] + self._target_offsets[-1]).tolist())
        if table.completions is not None:
            self._completions.extend((table.completions.offsets[1:] + self._completions[-1]).tolist())
            self._lengths.extend(table.completions.lengths.tolist())
            self._scores.extend(table.completions.scores.tolist())

    def table(self) -> TokenTable:
        """All rows so far; do not add rows afterwards."""
        return TokenTable(
            self._ids.array(),
            self._loss_mask.array(),
            np.array(self._offsets, np.int64),
            tuple(self._files),
            np.array(self._file, np.int32),
            np.array(self._row, np.int64),
            self._targets.array() if self._has_targets else None,
            np.array(self._target_offsets, np.int64) if self._has_targets else None,
            completions=self._completions_so_far() if len(self._scores) else None,
        )

    def _completions_so_far(self) -> Completions:
        scores = np.array(self._scores, np.float32)
        offsets, lengths = np.array(self._completions, np.int64), np.array(self._lengths, np.int32)
        return Completions(offsets, lengths, scores, np.full(len(scores), np.nan, np.float32))


class _Spool:
    """Concatenated arrays, in a temporary file from `SPOOL` entries on."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._parts: list[NDArray[Any]] = []
        self._count = 0
        self._spooled = 0
        self._file: IO[bytes] | None = None

    def add(self, part: NDArray[Any]) -> None:
        self._parts.append(np.asarray(part, self._dtype))
        self._count += len(part)
        if self._count >= SPOOL:
            self._flush()

    def _flush(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it must live as long as the memory map
        self._file.write(self._joined().tobytes())
        self._spooled += self._count
        self._parts, self._count = [], 0

    def _joined(self) -> NDArray[Any]:
        return np.concatenate(self._parts) if self._parts else np.zeros(0, self._dtype)

    def array(self) -> NDArray[Any]:
        if self._file is None:
            return self._joined()
        self._flush()
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", shape=(self._spooled,))
