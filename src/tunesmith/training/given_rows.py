"""Rows that a program gives to a `Trainer`, as a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import Batch, collate
from tunesmith.data.example import Example, Malformed, Source
from tunesmith.data.format_detection import chosen_format
from tunesmith.data.read import Row
from tunesmith.data.render import Renderer
from tunesmith.data.row_formats import to_example
from tunesmith.data.tokenize import Tokenizer
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError


def batch_of(
    rows: Sequence[int] | Sequence[Mapping[str, Any]],
    own: TokenTable,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> Batch:
    """Rows as a batch, packed without padding.

    Args:
        rows: indices of the run's training rows, or rows of data in any format that the objective takes.
        own: the run's training rows.
        recipe: of the run.
        tokenizer: of the run.
        device: of the model.

    Returns:
        The batch; its `rows` are the indices, or empty for rows of data.

    Raises:
        UserError: a row cannot be trained on.
    """
    if not len(rows):
        raise UserError("There are no rows.")
    indices = [int(row) for row in rows if isinstance(row, int | np.integer)]
    if len(indices) == len(rows):
        return collate(own, indices, device)
    given = [
        Row(row if isinstance(row, str) else dict(row), Source("rows", number))
        for number, row in enumerate(rows, 1)
        if isinstance(row, str | Mapping)
    ]
    if len(given) < len(rows):
        raise UserError("Rows are all indices of training rows, or all rows of data: objects or texts.")
    table = _table(given, recipe, tokenizer)
    return replace(collate(table, range(len(table)), device), rows=())


def _table(rows: Sequence[Row], recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> TokenTable:
    """The tokens of rows that are not among the run's."""
    data, objective = recipe.data, recipe.objective
    name = chosen_format(rows, data.format, objective.formats, data.columns)
    examples: list[Example] = []
    for row in rows:
        example = to_example(row, name, data.columns)
        if isinstance(example, Malformed):
            raise UserError(f"{example.source}: {example.reason}.")
        examples.append(example)
    chunk = Tokenizer(objective, Renderer(tokenizer), 0.0).chunk(examples)
    for source, reason in chunk.unusable:
        raise UserError(f"{source}: {reason}.")
    table = chunk.sides[0]
    for index in np.flatnonzero(objective.head.text_lengths(table) > data.max_length).tolist():
        raise UserError(f"{table.source(index)} is longer than data.max_length: {data.max_length:,} tokens.")
    return table
