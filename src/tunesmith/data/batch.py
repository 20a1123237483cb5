"""Batches: many tokenized examples as one row of concatenated documents, without padding or attention between them.

Attention stays inside each document, positions start at zero in each, and every loss token is predicted from its own
document alone. So each document gives the same loss and gradients as it would alone. Rows that hold several completions
of one beginning have the beginning once, as a document that the completions continue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.data.tokens import TokenTable

WIDTH_STEP = 128
"""Widths are a multiple of it. On a CPU, the first matrix product of a new shape costs milliseconds of code generation
and a megabyte that stays allocated, for each layer shape of the model. Rounding up adds 64 tokens on average."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Concatenated documents. The tokens after a document's last loss token are left out: nothing depends on them.

    A last document without loss tokens may fill the width up to a multiple of `WIDTH_STEP`.

    Attributes:
        input_ids: (1, width) int64.
        position_ids: (1, width) int64, from zero in each document.
        lengths: tokens of each document, in order, the padding document included; they add up to width.
        loss_positions: (loss positions,) int64: positions whose output has a loss: it predicts the next token, a
            word's tag, or, on a text's last token, the text's label.
        labels: (loss positions,) int64 next tokens; or (loss positions, values) float32 targets.
        rows: indices of the rows in the table.
        tokens: real tokens in the rows, including those left out.
        loss_tokens_per_row: units of loss of each row, in order.
        documents_per_row: documents of each row, in order; more than one if its texts are encoded separately.
        features: (rows, hidden) precomputed hidden states of a frozen body; the tensors of tokens are then empty.
        parents: for each document, the index of the one that it continues, -1 for none; None if none does. A document
            that others continue is their beginning, and the first position after it is each one's first.
        completions: what the rows compare, if they hold several completions of one beginning.
        columns: (loss positions,) float32 by name: the table's columns at the tokens that are predicted there.
    """

    input_ids: Tensor
    position_ids: Tensor
    lengths: list[int]
    loss_positions: Tensor
    labels: Tensor
    rows: tuple[int, ...]
    tokens: int
    loss_tokens_per_row: list[int]
    documents_per_row: list[int]
    features: Tensor | None = None
    parents: list[int] | None = None
    completions: "BatchCompletions | None" = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def loss_tokens(self) -> int:
        return sum(self.loss_tokens_per_row)

    @property
    def documents(self) -> int:
        """Without the padding document."""
        return sum(self.documents_per_row)


@dataclass(frozen=True, slots=True)
class BatchCompletions:
    """The completions of a batch, row by row.

    Attributes:
        per_row: how many each row has.
        loss_positions: how many of the batch's loss positions each completion has, in order.
        scores: of each, higher is better.
        reference: (completions,) float32: what the starting model says of each.
    """

    per_row: list[int]
    loss_positions: list[int]
    scores: list[float]
    reference: Tensor


def collate(table: TokenTable, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
    """Concatenate the given rows of the table, and pad to a multiple of `WIDTH_STEP`."""
    if table.features is not None:
        return _features_alone(table, rows, device)
    if table.completions is not None:
        return _with_completions(table, rows, device)
    ids, loss_positions, lengths, loss_tokens_per_row, documents_per_row = [], [], [], [], []
    positions: list[NDArray[np.int64]] = []
    labels: list[NDArray[Any]] = []
    tokens = width = 0
    for row in rows:
        all_ids, loss_mask = table[row]
        if table.targets is None:
            marks = np.flatnonzero(loss_mask[1:])  # position t predicts token t + 1
            ends = marks[-1:] + 1 if len(marks) else np.ones(1, np.int64)
            labels.append(all_ids[1:][marks])
            units = len(marks)
        else:
            marks = np.flatnonzero(loss_mask)
            targets = table.targets_of(row)
            is_contrastive = len(targets) == 0  # texts that are compared have no targets
            ends = marks + 1 if is_contrastive else np.array([len(all_ids)])
            labels.append(targets.reshape(len(marks), -1))
            units = 1 if is_contrastive else len(marks)
        own = np.diff(ends, prepend=0).tolist()
        ids.append(all_ids[: ends[-1]])
        positions.extend(np.arange(length) for length in own)
        lengths.extend(own)
        loss_positions.append(marks + width)
        loss_tokens_per_row.append(units)
        documents_per_row.append(len(own))
        tokens += len(all_ids)
        width += int(ends[-1])
    if missing := -width % WIDTH_STEP:
        ids.append(np.zeros(missing, np.int32))
        positions.append(np.arange(missing))
        lengths.append(missing)
    return Batch(
        _tensor(ids, device)[None],
        _tensor(positions, device)[None],
        lengths,
        _tensor(loss_positions, device),
        _tensor(labels, device, np.int64 if table.targets is None else np.float32),
        tuple(rows),
        tokens,
        loss_tokens_per_row,
        documents_per_row,
    )


def _features_alone(table: TokenTable, rows: Sequence[int], device: torch.device | str) -> Batch:
    """A batch of rows whose hidden states are precomputed."""
    empty = torch.zeros(1, 0, dtype=torch.int64, device=device)
    return Batch(
        empty,
        empty,
        [],
        empty[0],
        torch.from_numpy(np.stack([table.targets_of(row) for row in rows])).to(device),
        tuple(rows),
        sum(int(table.lengths[row]) for row in rows),
        [1] * len(rows),
        [1] * len(rows),
        torch.from_numpy(np.asarray(table.features)[list(rows)]).to(device),
    )


def _tensor(parts: Sequence[NDArray[Any]], device: torch.device | str, dtype: type = np.int64) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype)).to(device)


def _with_completions(table: TokenTable, rows: Sequence[int], device: torch.device | str) -> Batch:
    """A batch of rows that hold several completions of one beginning. A row's unit of loss is the row."""
    assert table.completions is not None
    next_token = table.targets is None
    documents: list[NDArray[np.int32]] = []
    parents: list[int] = []
    starts: list[int] = []
    loss_positions, documents_per_row = [], []
    labels: list[NDArray[Any]] = []
    loss_counts: list[int] = []
    predicted: list[NDArray[np.int64]] = []
    width = 0

    def add(ids: NDArray[np.int32], parent: int, start: int) -> None:
        nonlocal width
        documents.append(ids)
        parents.append(parent)
        starts.append(start)
        width += len(ids)

    for row in rows:
        ids, mask = table[row]
        (shared, *own), _ = table.completions.of(row)
        before = len(documents)
        if shared:
            add(ids[:shared], -1, 0)
        parent, last = (len(documents) - 1, width - 1) if shared else (-1, -1)
        at = shared
        for count in own:
            marks = np.flatnonzero(mask[at : at + count])
            # A completion's first token is predicted from the last one of the beginning.
            marks = marks if shared or not next_token else marks[marks > 0]
            positions = width + marks - 1 if next_token else width + marks
            if next_token:
                positions[marks == 0] = last
                labels.append(ids[at : at + count][marks])
            kept = (int(marks[-1]) + (not next_token) if len(marks) else 0) or (0 if shared else 1)
            if kept:
                add(ids[at : at + kept], parent, shared)
            loss_positions.append(positions)
            predicted.append(table.offsets[row] + at + marks)
            loss_counts.append(len(marks))
            at += count
        if not next_token:
            labels.append(table.targets_of(row))
        documents_per_row.append(len(documents) - before)
    if missing := -width % WIDTH_STEP:
        add(np.zeros(missing, np.int32), -1, 0)
    lengths = [len(document) for document in documents]
    starting = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    chosen = [(table.completions.offsets[row], table.completions.offsets[row + 1]) for row in rows]
    values = _tensor(labels, device, np.int64 if next_token else np.float32)
    return Batch(
        _tensor(documents, device)[None],
        _tensor(starting, device)[None],
        lengths,
        _tensor(loss_positions, device),
        values if next_token else values[:, None],
        tuple(rows),
        sum(int(table.lengths[row]) for row in rows),
        [1] * len(rows),
        documents_per_row,
        parents=parents,
        completions=BatchCompletions(
            [int(end - start) for start, end in chosen],
            loss_counts,
            [score for row in rows for score in table.completions.of(row)[1]],
            _tensor([table.completions.reference[start:end] for start, end in chosen], device, np.float32),
        ),
        columns={
            name: _tensor([values[at] for at in predicted], device, np.float32)
            for name, values in table.columns.items()
        },
    )
