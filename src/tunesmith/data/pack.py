"""Packing: many tokenized examples in one batch, without padding and without attention between them.

A batch is one row of concatenated documents. Attention stays inside each document, positions start at zero in each,
and every loss token is predicted from its own document alone. So each document gives the same loss and gradients as it
would alone.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
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

    @property
    def loss_tokens(self) -> int:
        return sum(self.loss_tokens_per_row)

    @property
    def documents(self) -> int:
        """Without the padding document."""
        return sum(self.documents_per_row)


def collate(table: TokenTable, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
    """Concatenate the given rows of the table, and pad to a multiple of `WIDTH_STEP`."""
    if table.features is not None:
        return _features_alone(table, rows, device)
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

    def tensor(parts: list[np.ndarray], dtype: type = np.int64) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(dtype)).to(device)

    return Batch(
        tensor(ids)[None],
        tensor(positions)[None],
        lengths,
        tensor(loss_positions),
        tensor(labels, np.int64 if table.targets is None else np.float32),
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


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing bin packing (Johnson 1974): each item, longest first, into the fullest bin that holds it.

    Args:
        lengths: of the items.
        capacity: of a bin; an item longer than that gets a bin of its own.

    Returns:
        Bins of item indices. At most 11/9 of the optimum plus one; with documents much shorter than the bin, within
        one or two percent of full.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (space left, bin), ascending
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[item]
        at = bisect.bisect_left(room, (length, -1))
        if at < len(room):
            left, chosen = room.pop(at)
        else:
            left, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        if left > length:
            bisect.insort(room, (left - length, chosen))
    return bins


def best_fit_balanced(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """As few bins as `best_fit` needs, but evenly filled, so that an epoch does not end with a step of a few tokens."""
    bins = best_fit(lengths, capacity)
    room = sum(lengths) / len(bins)
    while (room := room * 1.01) < capacity:
        even = best_fit(lengths, int(room))
        if len(even) == len(bins):
            return even
    return bins


def next_fit(lengths: Sequence[int], capacity: int, padded: bool = False) -> list[list[int]]:
    """Items in their given order, a new bin whenever the next one does not fit, by `width`."""
    bins: list[list[int]] = []
    total = longest = 0
    for item, length in enumerate(lengths):
        total, longest = total + length, max(longest, length)
        if not bins or (longest * (len(bins[-1]) + 1) if padded else total) > capacity:
            bins.append([])
            total = longest = length
        bins[-1].append(item)
    return bins


def bucket_by_length(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of items of similar length, longest first; each bin is within the capacity when its items are padded."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [[order[index] for index in bin] for bin in next_fit([lengths[item] for item in order], capacity, True)]


def pack_any_order(lengths: Sequence[int], capacity: int, padded: bool) -> list[list[int]]:
    """Bins for one pass whose order does not matter, with packed or padded rows."""
    return bucket_by_length(lengths, capacity) if padded else best_fit(lengths, capacity)


def width(lengths: Sequence[int], padded: bool) -> int:
    """Tokens in a batch of rows of these lengths: concatenated, or each padded to the longest."""
    return max(lengths) * len(lengths) if padded else sum(lengths)


class Batches:
    """Which rows each optimizer step takes. The seed decides it for any step: only the step number is needed to
    resume.

    A step is a list of batches, each a list of rows, whose gradients are accumulated before the update.
    """

    def __init__(
        self,
        table: TokenTable,
        *,
        tokens_per_step: int,
        tokens_per_batch: int,
        pack: bool,
        shuffle: bool,
        seed: int,
        padded: bool = False,
    ) -> None:
        self.table = table
        self._tokens_per_step = tokens_per_step
        self._tokens_per_batch = tokens_per_batch
        self._pack = pack
        self._shuffle = shuffle
        self._seed = seed
        self.padded = padded
        self._lengths = table.lengths.tolist()
        self._epochs: list[list[list[list[int]]]] = []

    def epoch(self, index: int) -> list[list[list[int]]]:
        """The steps of an epoch, each a list of batches, each a list of rows."""
        while len(self._epochs) <= index:
            self._epochs.append(self._plan(len(self._epochs)))
        return self._epochs[index]

    def step(self, index: int) -> list[list[int]]:
        """The batches of the optimizer step `index`, counted from zero across epochs."""
        epoch = 0
        while index >= len(self.epoch(epoch)):
            index -= len(self.epoch(epoch))
            epoch += 1
        return self.epoch(epoch)[index]

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps in that many epochs, at least one."""
        full = int(epochs)
        steps = sum(len(self.epoch(index)) for index in range(full))
        if epochs > full:
            steps += round((epochs - full) * len(self.epoch(full)))
        return max(1, steps)

    def tokens_in(self, first: int, last: int) -> int:
        """Real tokens in the steps first … last − 1."""
        return sum(self._lengths[row] for index in range(first, last) for rows in self.step(index) for row in rows)

    def _plan(self, epoch: int) -> list[list[list[int]]]:
        order = np.arange(len(self._lengths))
        generator = np.random.default_rng([self._seed, epoch])
        if self._shuffle:
            generator.shuffle(order)
        lengths = [self._lengths[row] for row in order]
        if not self._pack:
            bins = [[item] for item in range(len(order))]
        elif self._shuffle:
            make_bins = bucket_by_length if self.padded else best_fit_balanced
            bins = make_bins(lengths, self._tokens_per_batch)
            generator.shuffle(bins)
        else:
            bins = next_fit(lengths, self._tokens_per_batch, self.padded)
        steps: list[list[list[int]]] = []
        tokens_in_step = self._tokens_per_step
        for items in bins:
            tokens = sum(lengths[item] for item in items)
            # Start a new step where that is closer to `tokens_per_step` than adding the batch would be.
            if tokens_in_step + tokens / 2 > self._tokens_per_step:
                steps.append([])
                tokens_in_step = 0
            steps[-1].append([int(order[item]) for item in items])
            tokens_in_step += tokens
        return steps
