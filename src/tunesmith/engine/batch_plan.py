"""Which rows a run batches together, and which batch is the largest."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter

import numpy as np

from tunesmith.config.objective import RolloutPlan
from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import WIDTH_STEP
from tunesmith.data.example import Source
from tunesmith.data.pack import Batches, next_fit, width
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.engine.evaluations import Evaluations
from tunesmith.objectives.rollouts import row_ends

SCORES = 768
"""Tokens of a document for which the stored attention scores take about as much memory as everything else that a block
stores: heads are 64 wide, and a pass stores two or three scores per pair of tokens."""


@dataclass(frozen=True)
class Layout:
    """A run's batches.

    Attributes:
        batches: which rows each step takes; with rollouts, which prompts each phase takes.
        steps: optimizer steps of the run.
        largest_batch: the rows of the batch with the most tokens in the run.
        largest_by_scores: the same if attention stores a score for each pair of a document's tokens.
        widths: the distinct widths of its batches, in `WIDTH_STEP`s.
        evaluations: how often it evaluates, and on which held-out rows.
        table: what the rows of the largest batches are in; with rollouts, completions as long as they can get.
        tokens_per_step: tokens of a step, with rollouts; None: they are those of its rows.
    """

    batches: Batches
    steps: int
    largest_batch: list[int]
    largest_by_scores: list[int]
    widths: frozenset[int]
    evaluations: Evaluations
    table: TokenTable
    tokens_per_step: int | None = None

    def tokens_in(self, first: int, last: int) -> int:
        """Tokens in the steps first … last − 1; with rollouts, at most."""
        if self.tokens_per_step is None:
            return self.batches.tokens_in(first, last)
        return self.tokens_per_step * (last - first)

    def largest_of(self, scores: bool) -> list[int]:
        """The batch that takes the most memory, with or without stored attention scores."""
        return self.largest_by_scores if scores else self.largest_batch


@dataclass(frozen=True)
class BatchPlan:
    """A recipe's rows, and how many tokens a batch holds.

    Attributes:
        recipe: with its objective resolved.
        table: its training rows.
        tokens_per_batch: the most tokens in a batch.
        held_out: its held-out rows.
        known: whether these are the run's actual rows; False if they only stand for similar rows.
    """

    recipe: Recipe
    table: TokenTable
    tokens_per_batch: int
    held_out: TokenTable = field(default_factory=lambda: TokenTable.build(()))
    known: bool = True
    _layouts: dict[bool, Layout] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, recipe: Recipe, table: TokenTable, held_out: TokenTable | None = None) -> "BatchPlan":
        plan = cls(recipe, table, recipe.train.max_batch_tokens)
        return plan if held_out is None else replace(plan, held_out=held_out)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, which cannot be split."""
        return int(self.table.lengths.max())

    def over(self, table: TokenTable) -> "BatchPlan":
        """The same plan for another table of the same rows: one that holds the features of a frozen body."""
        return self if table is self.table else replace(self, table=table)

    def layout(self, packed: bool) -> Layout:
        """Its batches, with rows packed or padded; cached."""
        if packed not in self._layouts:
            self._layouts[packed] = self._make_layout(packed)
        return self._layouts[packed]

    def _make_layout(self, packed: bool) -> Layout:
        train = self.recipe.train
        if self.recipe.objective.rollouts is not None:
            return self._layout_of_rollouts(self.recipe.objective.rollouts, packed)
        batches = Batches(
            self.table,
            tokens_per_step=train.tokens_per_step,
            tokens_per_batch=self.tokens_per_batch,
            pack=self.recipe.data.pack,
            shuffle=train.shuffle,
            order=self.recipe.data.order,
            seed=train.seed,
            padded=not packed,
        )
        steps = train.steps or batches.steps_in(train.epochs or 1.0)
        documents = self._documents(packed)
        largest, largest_by_scores = (0.0, [0]), (0.0, [0])
        widths = set()
        for rows in (rows for step in range(steps) for rows in batches.step(step)):
            row_lengths = [length for row in rows for length in documents[row]]
            tokens = width(row_lengths, batches.padded)
            widths.add(-(-tokens // WIDTH_STEP))
            largest = max(largest, (tokens, rows), key=itemgetter(0))
            pairs = tokens * max(row_lengths) if batches.padded else sum(length * length for length in row_lengths)
            largest_by_scores = max(largest_by_scores, (tokens + pairs / SCORES, rows), key=itemgetter(0))
        evaluations = Evaluations.of(train, steps, batches.tokens_in(0, steps), self.held_out)
        return Layout(batches, steps, largest[1], largest_by_scores[1], frozenset(widths), evaluations, self.table)

    def _documents(self, packed: bool) -> list[list[int]]:
        """The lengths of the documents that each row is computed as: of completions that cannot share their prompt's
        computation, each has a copy of it."""
        completions = self.table.completions
        if completions is None or (packed and not self.recipe.method.copies_prompts):
            return [[length] for length in self.table.lengths.tolist()]
        rows = (completions.of(row)[0] for row in range(len(self.table)))
        return [[shared + length for length in own] for shared, *own in rows]

    def _layout_of_rollouts(self, plan: RolloutPlan, packed: bool) -> Layout:
        """The layout of a run that trains on what it samples: the largest batch is of the longest prompts, with
        completions as long as they can get."""
        train = self.recipe.train
        batches = Batches(
            self.table,
            tokens_per_step=0,
            tokens_per_batch=self.tokens_per_batch,
            pack=True,
            shuffle=train.shuffle,
            order=self.recipe.data.order,
            seed=train.seed,
            padded=not packed,
            rows_per_step=plan.prompts,
        )
        steps = train.steps or batches.steps_in(train.epochs or 1.0) * plan.updates
        longest = self.table.lengths.argsort(kind="stable")[::-1].tolist()
        completions = min(plan.prompts, len(longest)) * plan.trained
        every = [
            row
            for prompt in self.table.lengths[longest[: plan.prompts]].tolist()
            for row in _group_rows(prompt, plan, self.tokens_per_batch)
        ]
        batch = next_fit([sum(parts) for parts in every], self.tokens_per_batch, batches.padded)[0]
        longest_rows = [sum(every[item]) for item in batch]
        table = TokenTable.build(_row_of(every[item]) for item in batch)
        rows = list(range(len(batch)))
        widths = frozenset(range(1, -(-width(longest_rows, batches.padded) // WIDTH_STEP) + 1))
        prompts = min(plan.prompts, len(longest)) * float(self.table.lengths.mean())
        per_phase = round(prompts + completions * plan.most_tokens)
        offsets = self.held_out.offsets + plan.most_tokens * np.arange(len(self.held_out) + 1)
        answered = replace(self.held_out, offsets=offsets)  # an evaluation answers its prompts, too
        per_step = per_phase * plan.passes // plan.updates
        evaluations = Evaluations.of(train, steps, per_step * steps, answered)
        return Layout(batches, steps, rows, rows, widths, evaluations, table, per_step)


def _group_rows(prompt: int, plan: RolloutPlan, most: int) -> Iterator[tuple[int, ...]]:
    """The rows of a prompt's completions if all are as long as they can get: the tokens of the prompt, and of each."""
    ends = [0, *row_ends(prompt, [plan.most_tokens] * plan.trained, most, plan.are_compared)]
    return ((prompt, *[plan.most_tokens] * (end - start)) for start, end in pairwise(ends))


def _row_of(lengths: tuple[int, ...]) -> Tokens:
    tokens = sum(lengths)
    scores = (0.0,) * (len(lengths) - 1)
    return (
        np.zeros(tokens, np.int32), np.arange(tokens) >= lengths[0], Source("", 1), None, (lengths, scores)
    )  # fmt: skip
