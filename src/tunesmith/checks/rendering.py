"""What a recipe makes of rows: those that cannot be trained on, those that the limit cuts, and their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.check import RowCheck
from tunesmith.checks.result import Mark
from tunesmith.checks.split_tokens import UNKNOWN_TOKENS, split_ids, split_shares
from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Example
from tunesmith.data.tokenize import Tokenizer

UNUSABLE = RowCheck(
    "unusable",
    "Rows that cannot be trained on",
    "error",
    "Correct them, or set data.skip_unusable: true, which leaves them out and counts them.",
    lambda record: None,  # the scan marks them
)

OVER_MAX_LENGTH = RowCheck(
    "over_max_length",
    "Rows longer than data.max_length",
    "warning",
    "Raise data.max_length, or choose with data.overflow what becomes of them: truncate, split or drop.",
    lambda record: None,
)


@dataclass(frozen=True)
class Renders:
    """Renders and tokenizes rows as a run of the recipe does.

    Attributes:
        tokenizer: with the recipe's objective.
        limit: `data.max_length`; 0 if the objective concatenates rows, so that none is too long.
        head: measures the texts of a row.
        split: ids of tokens that are unknown or single bytes.
    """

    tokenizer: Tokenizer
    limit: int
    head: Any
    split: NDArray[np.int32]

    def of(self, examples: Sequence[Example], marks: dict[str, list[Mark]]) -> tuple[int, int]:
        """Mark rows that cannot be trained on, or are too long.

        Args:
            examples: some rows.
            marks: by check, which are extended.

        Returns:
            Their tokens, and how many of these have loss.
        """
        chunk = self.tokenizer.chunk(examples)
        marks.setdefault(UNUSABLE.name, []).extend(Mark(source, reason) for source, reason in chunk.unusable)
        table = chunk.sides[0]
        if not len(table):
            return 0, 0
        lengths = self.head.text_lengths(table)
        long = marks.setdefault(OVER_MAX_LENGTH.name, [])
        for row in (lengths > self.limit).nonzero()[0].tolist() if self.limit else ():
            cut = int(lengths[row]) - self.limit
            long.append(Mark(table.source(row), f"{lengths[row]:,} tokens, {cut:,} more than {self.limit:,}", (), cut))
        for row, share in split_shares(table.ids, table.offsets, self.split):
            detail = f"{share:.0%} of its tokens are unknown or single bytes"
            marks.setdefault(UNKNOWN_TOKENS.name, []).append(Mark(table.source(row), detail, (), share))
        return len(table.ids), int(table.loss_tokens)


def rendering_of(recipe: Recipe) -> tuple[Renders, str]:
    """What renders rows for a recipe, and what identifies it.

    Args:
        recipe: a whole one, whose objective is resolved.

    Raises:
        UserError: its tokenizer cannot be loaded.
    """
    from tunesmith.data.cache import tokenizer_fingerprint
    from tunesmith.data.render import Renderer
    from tunesmith.data.rendered import renders
    from tunesmith.models.load import load_tokenizer

    tokenizer = load_tokenizer(recipe.base)
    key = tokenizer_fingerprint(tokenizer)
    limit = 0 if recipe.objective.concatenates_rows else recipe.data.max_length
    return Renders(
        Tokenizer(renders(recipe), Renderer(tokenizer), 0.0), limit, recipe.objective.head, split_ids(tokenizer)
    ), key
