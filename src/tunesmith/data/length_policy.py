"""Examples over `data.max_length`: refused, truncated, split or dropped, as the recipe says, and counted."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Source
from tunesmith.data.report import SHOWN, DataReport
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.errors import UserError


def fit(recipe: Recipe, table: TokenTable, report: DataReport, closing: int = 0) -> TokenTable:
    """The table with over-long examples brought under `data.max_length` in the recipe's way, and counted.

    Args:
        recipe: says how.
        table: of one side.
        report: counts.
        closing: how many tokens the tokenizer ends a text with; where no next token is learnt, they stay.

    Raises:
        UserError: they are to be refused, or truncating leaves some without anything to learn.
    """
    limit = recipe.data.max_length
    if recipe.objective.joins_rows:
        return _joined(table, limit, report)
    how = recipe.data.overflow if recipe.data.overflow != "auto" else recipe.objective.overflow
    ending = recipe.objective.ending.kind
    long = np.flatnonzero(_longest_text(table) > limit if ending == "vectors" else table.lengths > limit)
    if len(long) == 0:
        return table
    if how == "refuse":
        shown = ", ".join(f"{table.source(row)} ({table.lengths[row]:,} tokens)" for row in long[:SHOWN])
        more = f" and {len(long) - SHOWN:,} more" if len(long) > SHOWN else ""
        raise UserError(
            f"{len(long):,} of {len(table):,} examples are longer than data.max_length ({limit:,} tokens): "
            f"{shown}{more}. Raise data.max_length, or set data.overflow to truncate, split or drop "
            "(they are then counted)."
        )
    if ending != "vocabulary":
        return TokenTable.build(_told(table, limit, how == "drop", ending, report, closing))
    return TokenTable.build(_fitted(table, limit, how, report))


def _joined(table: TokenTable, limit: int, report: DataReport) -> TokenTable:
    """All rows end to end, cut every `limit` tokens; each piece is named after the row that it begins in."""
    pieces = []
    for start, ids, loss_mask in _cut(table.ids, table.loss_mask, limit, report):
        row = int(np.searchsorted(table.offsets, start, side="right")) - 1
        pieces.append((ids, loss_mask, table.source(row)))
    report.joined += len(pieces)
    return TokenTable.build(pieces)


def _longest_text(table: TokenTable) -> NDArray[np.int64]:
    """(rows,) tokens of each row's longest text, where a mark stands on the last token of each."""
    longest = [np.diff(np.flatnonzero(loss_mask), prepend=-1).max() for _, loss_mask in table]
    return np.array(longest, np.int64)


def _told(table: TokenTable, limit: int, drop: bool, ending: str, report: DataReport, closing: int) -> Iterator[Tokens]:
    """Rows of which something is told: over-long texts lose what stands before the tokens that they end with; the
    mark on a text's last token stays, and the tags of words that are lost go with them."""
    for ids, loss_mask, source, *targets in table.rows():
        if ending == "vectors":
            texts = np.split(np.arange(len(ids)), np.flatnonzero(loss_mask)[:-1] + 1)
        else:
            texts = [np.arange(len(ids))]
        if all(len(text) <= limit for text in texts):
            yield ids, loss_mask, source, *targets
        elif drop:
            report.dropped += 1
        else:
            report.truncated += 1
            texts = [np.delete(text, slice(limit - closing, len(text) - closing)) for text in texts]
            kept = np.concatenate(texts)
            if ending != "tags":
                marks = np.zeros(len(kept), np.bool_)
                marks[np.cumsum([len(text) for text in texts]) - 1] = True
                yield ids[kept], marks, source, *targets
            elif loss_mask[kept].any():
                yield ids[kept], loss_mask[kept], source, targets[0][: int(loss_mask[kept].sum())]
            else:
                report.unlearnable += 1


def _fitted(table: TokenTable, limit: int, how: str, report: DataReport) -> Iterator[Tokens]:
    hopeless: list[Source] = []
    for ids, loss_mask, source, *_ in table.rows():
        if len(ids) <= limit:
            yield ids, loss_mask, source
        elif how == "drop":
            report.dropped += 1
        elif how == "truncate":
            report.truncated += 1
            if loss_mask[1:limit].any():
                yield ids[:limit], loss_mask[:limit], source
            else:
                hopeless.append(source)
        else:
            report.split += 1
            yield from ((piece, marks, source) for _, piece, marks in _cut(ids, loss_mask, limit, report))
    if hopeless:
        shown = ", ".join(str(source) for source in hopeless[:SHOWN])
        raise UserError(
            f"Truncated to data.max_length ({limit:,} tokens), {len(hopeless):,} examples have no learnt token left: "
            f"{shown}. Raise data.max_length, or set data.overflow: drop."
        )


def _cut(
    ids: NDArray[np.int32], loss_mask: NDArray[np.bool_], limit: int, report: DataReport
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.bool_]]]:
    """Pieces of `limit` tokens and where they start; each begins with the last token of the one before, read and not
    learnt, so that every token is predicted exactly once."""
    for start in range(0, len(ids) - 1, limit - 1):
        piece = loss_mask[start : start + limit].copy()
        piece[0] = loss_mask[0] if start == 0 else False
        if piece[1:].any():
            yield start, ids[start : start + limit], piece
        else:
            report.unlearnable += 1
