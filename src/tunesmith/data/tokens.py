"""Tokenized examples as flat arrays, which are packed, cached and counted."""

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.example import Source

Targets = tuple[float, ...]
"""The targets of a row's loss positions if they are not the next tokens: class indices, values."""

Tokens = tuple[NDArray[np.int32], NDArray[np.bool_], Source, *tuple[Targets, ...]]
"""One example: ids (n,), loss mask (n,), its row, and its targets if it has some."""


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
    def loss_tokens(self) -> int:
        """Units of loss: tokens with loss, or rows if texts are compared. When the next token is the target, a row's
        first token has no loss, because no token comes before it."""
        if self.targets is not None:
            return int(np.count_nonzero(self.loss_mask)) if len(self.targets) else len(self)
        starts = self.offsets[:-1][self.lengths > 0]
        return int(np.count_nonzero(self.loss_mask)) - int(np.count_nonzero(self.loss_mask[starts]))

    def rows(self) -> Iterator[Tokens]:
        """Each row with its source, and its targets if it has some."""
        for index in range(len(self)):
            targets = () if self.targets is None else (tuple(self.targets_of(index).tolist()),)
            yield (*self[index], self.source(index), *targets)

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

    def add(
        self, ids: NDArray[np.int32], loss_mask: NDArray[np.bool_], source: Source, targets: Targets | None = None
    ) -> None:
        self._ids.add(ids)
        self._loss_mask.add(loss_mask)
        self._offsets.append(self._offsets[-1] + len(ids))
        self._file.append(self._files.setdefault(source.file, len(self._files)))
        self._row.append(source.row)
        if targets is not None:
            self._has_targets = True
            self._targets.add(np.asarray(targets, np.float32))
            self._target_offsets.append(self._target_offsets[-1] + len(targets))

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
        )


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
