"""Which rows go together in a run's batches, and which batch is the heaviest of all."""

from dataclasses import dataclass

from tunesmith.data.pack import Batches, width
from tunesmith.data.tokens import TokenTable
from tunesmith.recipe import Recipe

USUAL_BATCH = 2048
"""Tokens that go at once where a recipe does not say: a CPU gets no faster with more."""


@dataclass(frozen=True)
class Workload:
    """A recipe's training rows, and how many tokens go at once.

    Attributes:
        recipe: with its objective settled.
        table: its training rows.
        tokens_per_batch: most tokens that go at once.
        known: whether the rows are the run's own, and not like them.
    """

    recipe: Recipe
    table: TokenTable
    tokens_per_batch: int
    known: bool = True

    @classmethod
    def of(cls, recipe: Recipe, table: TokenTable) -> "Workload":
        train = recipe.train
        return cls(recipe, table, train.tokens_per_batch or min(train.tokens_per_step, USUAL_BATCH))

    @property
    def longest(self) -> int:
        """Tokens of the longest row, which cannot be taken apart."""
        return int(self.table.lengths.max())

    def batches(self, packed: bool) -> Batches:
        train = self.recipe.train
        return Batches(
            self.table,
            tokens_per_step=train.tokens_per_step,
            tokens_per_batch=self.tokens_per_batch,
            pack=self.recipe.data.pack,
            shuffle=train.shuffle,
            seed=train.seed,
            padded=not packed,
        )

    def steps(self, batches: Batches) -> int:
        """Optimiser steps of the run."""
        return self.recipe.train.steps or batches.steps_in(self.recipe.train.epochs or 1.0)


def heaviest(batches: Batches, steps: int) -> list[int]:
    """The rows of the batch that takes most tokens, of all in the run."""
    lengths = batches.table.lengths
    return max(
        (rows for step in range(steps) for rows in batches.step(step)),
        key=lambda rows: width([int(lengths[row]) for row in rows], batches.padded),
    )
