"""Sampled completions as rows of tokens, and the sizes of those rows."""

import itertools
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.batch import Batch
from tunesmith.data.tokens import TableBuilder, TokenTable
from tunesmith.objectives.rollouts import row_ends
from tunesmith.objectives.scored import Scored


class StepTotals(NamedTuple):
    """What an optimizer step has in all of its batches: rows of the table, completions, and tokens with a loss."""

    rows: int
    completions: int
    tokens: int

    @classmethod
    def of(cls, batch: Batch) -> "StepTotals":
        """If the batch is the whole step."""
        lengths = completion_lengths(batch)
        return cls(len(batch.rows), len(lengths), sum(lengths))


def completion_lengths(batch: Batch) -> list[int]:
    """Tokens with a loss of each completion of a batch."""
    assert batch.completions is not None
    return batch.completions.loss_positions


def tokens_per_row(batch: Batch) -> list[int]:
    """Tokens with a loss of each row of a batch."""
    assert batch.completions is not None
    lengths = iter(completion_lengths(batch))
    return [sum(itertools.islice(lengths, count)) for count in batch.completions.per_row]


def table_of(
    scored: Scored, most_tokens: int, which: Sequence[Sequence[int]] | None = None, are_compared: bool = False
) -> tuple[TokenTable, list[int]]:
    """A row for each prompt, which its completions share; for more than one if they do not fit into a batch together.

    Args:
        scored: the completions.
        most_tokens: of a row, unless a single completion has more.
        which: of each prompt, by index; default: all.
        are_compared: whether a prompt's completions stay in one row, whatever its length.

    Returns:
        The rows, and the prompt of each, as an index into `scored`.
    """
    builder = TableBuilder()
    owners: list[int] = []
    for owner, (prompt, group) in enumerate(zip(scored.prompts, scored.groups, strict=True)):
        taken = list(range(len(group)) if which is None else which[owner])
        lengths = [len(group[index].tokens) for index in taken]
        for start, end in pairwise([0, *row_ends(len(prompt.ids), lengths, most_tokens, are_compared)]):
            parts = [prompt.ids, *(group[index].tokens for index in taken[start:end])]
            ids = np.concatenate([np.asarray(part, np.int32) for part in parts])
            rewards = tuple(float(scored.rewards[owner, index]) for index in taken[start:end])
            in_row = tuple(len(part) for part in parts)
            builder.add(ids, np.arange(len(ids)) >= in_row[0], prompt.source, None, (in_row, rewards))
            owners.append(owner)
    return builder.table(), owners


def values_of(values: NDArray[np.float32], table: TokenTable, which: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """(tokens of some completions,) of a column of a table of all.

    Args:
        values: the column (tokens,).
        table: as `table_of` makes it of all completions, as many of each prompt.
        which: of each prompt, by index.
    """
    lengths = lengths_of(table, range(len(table)))
    each = np.split(values[table.loss_mask], np.cumsum(lengths)[:-1])
    group = len(each) // len(which)
    return np.concatenate([each[owner * group + index] for owner, taken in enumerate(which) for index in taken])


def column_of(table: TokenTable, values: Sequence[float] | NDArray[np.float32]) -> NDArray[np.float32]:
    """(tokens,) with these values at the tokens that have a loss."""
    column = np.zeros(len(table.ids), np.float32)
    column[table.loss_mask] = values
    return column


def lengths_of(table: TokenTable, rows: Iterable[int]) -> list[int]:
    """Tokens of each completion of some rows."""
    assert table.completions is not None
    return [length for row in rows for length in table.completions.of(row)[0][1:]]
