"""Packing: many tokenized examples in one batch, without padding and without mixing.

A batch is documents laid end to end in one row. Attention stays inside each document, positions start at zero in each,
and a document's last learnt token is predicted from its own past alone, so that each gives the loss and gradients that
it would give by itself.
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
"""Widths are a multiple of it: a matrix product of a shape that has not been seen before costs a CPU milliseconds of
code generation and a megabyte that is kept, for each of a model's layer shapes. It adds 64 tokens on average."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents laid end to end. What follows a document's last learnt token is left out: nothing depends on it.

    A last document of which nothing is learnt may fill the width up to a round one.

    Attributes:
        input_ids: (1, width) int64.
        position_ids: (1, width) int64, from zero in each document.
        lengths: of the documents, the filling one included, in order; they add up to width.
        loss_positions: (marked,) int64: where something is learnt: the next token; a word's tag; on a text's last
            token, what is told of the text.
        labels: (marked,) int64: those next tokens; or (marked, values) float32: what is told there.
        rows: which rows of the table they are.
        tokens: real tokens in the rows, those left out included.
        loss_tokens_per_row: units of loss of each row, in order.
        documents_per_row: of each row, in order: its texts, where they are read apart.
        features: (rows, hidden) where a frozen body's states are known already; then nothing else is laid out.
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
        """Without the one that fills up."""
        return sum(self.documents_per_row)


def collate(table: TokenTable, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
    """Lay the given rows of the table end to end, and fill up to a multiple of `WIDTH_STEP`."""
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
            told = table.targets_of(row)
            apart = len(told) == 0  # nothing is told of texts that are compared
            ends = marks + 1 if apart else np.array([len(all_ids)])
            labels.append(told.reshape(len(marks), -1))
            units = 1 if apart else len(marks)
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
    """A batch of rows whose hidden states are known."""
    nothing = torch.zeros(1, 0, dtype=torch.int64, device=device)
    return Batch(
        nothing,
        nothing,
        [],
        nothing[0],
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
        a per cent or two of full.
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
    """As few bins as `best_fit` needs, but evenly filled, so that an epoch does not end in a step of a few tokens."""
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
    """Items of like length together, longest first, each bin within the capacity when they are padded."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [[order[place] for place in bin] for bin in next_fit([lengths[item] for item in order], capacity, True)]


def pack_any_order(lengths: Sequence[int], capacity: int, padded: bool) -> list[list[int]]:
    """Bins for one pass in any order, of rows that are packed or padded."""
    return bucket_by_length(lengths, capacity) if padded else best_fit(lengths, capacity)


def width(lengths: Sequence[int], padded: bool) -> int:
    """Tokens that a batch of rows of these lengths takes: end to end, or each filled up to the longest."""
    return max(lengths) * len(lengths) if padded else sum(lengths)


class Batches:
    """Which rows each optimizer step takes, for any step, from the seed alone: resuming needs no cursor but the step.

    A step is a list of packed row lists, added up before the update.
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
        """The batches of the optimizer step `index`, counted from zero over all epochs."""
        epoch = 0
        while index >= len(self.epoch(epoch)):
            index -= len(self.epoch(epoch))
            epoch += 1
        return self.epoch(epoch)[index]

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps in so many passes, at least one."""
        whole = int(epochs)
        steps = sum(len(self.epoch(index)) for index in range(whole))
        if epochs > whole:
            steps += round((epochs - whole) * len(self.epoch(whole)))
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
            make = bucket_by_length if self.padded else best_fit_balanced
            bins = make(lengths, self._tokens_per_batch)
            generator.shuffle(bins)
        else:
            bins = next_fit(lengths, self._tokens_per_batch, self.padded)
        steps: list[list[list[int]]] = []
        pack_any_order = self._tokens_per_step
        for items in bins:
            tokens = sum(lengths[item] for item in items)
            # A step closes where stopping is nearer to the wanted tokens than going on.
            if pack_any_order + tokens / 2 > self._tokens_per_step:
                steps.append([])
                pack_any_order = 0
            steps[-1].append([int(order[item]) for item in items])
            pack_any_order += tokens
        return steps
