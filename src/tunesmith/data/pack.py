"""Packing: which rows a batch concatenates, and which batches a step has."""

import bisect
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.mix import Order
from tunesmith.data.tokens import TokenTable


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

    A step is a list of batches, each a list of rows, whose gradients are accumulated before the update. With
    `rows_per_step`, it is this many rows instead of `tokens_per_step`, in one batch. `order` is `data.order`.
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
        rows_per_step: int | None = None,
        order: Order = "as_drawn",
    ) -> None:
        self.table = table
        self._order = order
        self._rows_per_step = rows_per_step
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
        generator = np.random.default_rng([self._seed, epoch])
        groups = self._groups(generator)
        if self._rows_per_step is not None:
            order = np.concatenate(groups)
            starts = range(0, len(order), self._rows_per_step)
            return [[order[start : start + self._rows_per_step].tolist()] for start in starts]
        return self._steps(bin for group in groups for bin in self._bins(group, generator))

    def _groups(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """The rows of an epoch, in groups that follow one another."""
        rows = np.arange(len(self._lengths))
        if self._shuffle:
            generator.shuffle(rows)
        if self._order == "by_length":
            return [rows[np.argsort(self.table.lengths[rows], kind="stable")]]
        if self._order == "by_source":
            ends = np.cumsum(self.table.source_rows)
            return [rows[(rows >= start) & (rows < end)] for start, end in pairwise((0, *ends))]
        return [rows]

    def _bins(self, rows: NDArray[np.int64], generator: np.random.Generator) -> list[list[int]]:
        """The batches of a group."""
        lengths = [self._lengths[row] for row in rows]
        if not self._pack:
            bins = [[item] for item in range(len(rows))]
        elif self._shuffle and self._order != "by_length":
            make_bins = bucket_by_length if self.padded else best_fit_balanced
            bins = make_bins(lengths, self._tokens_per_batch)
            generator.shuffle(bins)
        else:
            bins = next_fit(lengths, self._tokens_per_batch, self.padded)
        return [rows[items].tolist() for items in bins]

    def _steps(self, batches: Iterable[list[int]]) -> list[list[list[int]]]:
        """Batches put together to steps."""
        steps: list[list[list[int]]] = []
        tokens_in_step = self._tokens_per_step
        for rows in batches:
            tokens = sum(self._lengths[row] for row in rows)
            # Start a new step where that is closer to `tokens_per_step` than adding the batch would be.
            if tokens_in_step + tokens / 2 > self._tokens_per_step:
                steps.append([])
                tokens_in_step = 0
            steps[-1].append(rows)
            tokens_in_step += tokens
        return steps
