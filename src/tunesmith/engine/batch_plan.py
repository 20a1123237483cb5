"""Which rows go together in a run's batches, and which batch is the heaviest of all."""

from dataclasses import dataclass, field, replace
from operator import itemgetter

from tunesmith.config.recipe import Recipe
from tunesmith.data.pack import WIDTH_STEP, Batches, width
from tunesmith.data.tokens import TokenTable

SCORES = 768
"""In a document so long, the scores that attention keeps take about as much as all else that a block keeps: heads are
64 wide, and a pass keeps two or three scores of each pair."""


@dataclass(frozen=True)
class Layout:
    """A run's batches.

    Attributes:
        batches: which rows each step takes.
        steps: optimizer steps of the run.
        heaviest: the rows of the batch that takes most tokens, of all in the run.
        largest_by_scores: the same where attention keeps a score for each pair of a document's tokens.
        widths: the different widths of its batches, in `WIDTH_STEP`s.
    """

    batches: Batches
    steps: int
    largest_batch: list[int]
    largest_by_scores: list[int]
    widths: frozenset[int]

    def largest_of(self, scores: bool) -> list[int]:
        """The batch that takes most memory, where attention keeps scores or not."""
        return self.largest_by_scores if scores else self.largest_batch


@dataclass(frozen=True)
class BatchPlan:
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
    _layouts: dict[bool, Layout] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, recipe: Recipe, table: TokenTable) -> "BatchPlan":
        return cls(recipe, table, recipe.train.tokens_at_once)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, which cannot be taken apart."""
        return int(self.table.lengths.max())

    def over(self, table: TokenTable) -> "BatchPlan":
        """The same over another table of the same rows: one that knows what a frozen body makes of them."""
        return self if table is self.table else replace(self, table=table)

    def layout(self, packed: bool) -> Layout:
        """Its batches, where rows are packed or padded; made once."""
        if packed not in self._layouts:
            self._layouts[packed] = self._make_layout(packed)
        return self._layouts[packed]

    def _make_layout(self, packed: bool) -> Layout:
        train = self.recipe.train
        batches = Batches(
            self.table,
            tokens_per_step=train.tokens_per_step,
            tokens_per_batch=self.tokens_per_batch,
            pack=self.recipe.data.pack,
            shuffle=train.shuffle,
            seed=train.seed,
            padded=not packed,
        )
        steps = train.steps or batches.steps_in(train.epochs or 1.0)
        lengths = self.table.lengths.tolist()
        most, most_by_scores = (0.0, [0]), (0.0, [0])
        widths = set()
        for rows in (rows for step in range(steps) for rows in batches.step(step)):
            own = [lengths[row] for row in rows]
            tokens = width(own, batches.padded)
            widths.add(-(-tokens // WIDTH_STEP))
            most = max(most, (tokens, rows), key=itemgetter(0))
            pairs = tokens * max(own) if batches.padded else sum(length * length for length in own)
            most_by_scores = max(most_by_scores, (tokens + pairs / SCORES, rows), key=itemgetter(0))
        return Layout(batches, steps, most[1], most_by_scores[1], frozenset(widths))
