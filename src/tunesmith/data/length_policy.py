"""The length policy: examples over `data.max_length` are refused, truncated, split or dropped, and counted."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Source
from tunesmith.data.report import SHOWN, DataReport
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.errors import UserError


def apply_length_policy(recipe: Recipe, table: TokenTable, report: DataReport, closing: int = 0) -> TokenTable:
    """Apply `data.overflow` to the examples that are longer than `data.max_length`.

    Args:
        recipe: sets the policy and the limit.
        table: the rows of one side, training or held-out.
        report: its counts are updated.
        closing: how many tokens the tokenizer adds after a text; heads that do not predict the next token keep them.

    Returns:
        A table whose rows have at most `data.max_length` tokens (each text of a row, if the row holds several).

    Raises:
        UserError: the policy is to refuse, or a truncated example has no loss token left.
    """
    limit = recipe.data.max_length
    if recipe.objective.concatenates_rows:
        return _joined(table, limit, report)
    policy = recipe.data.overflow if recipe.data.overflow != "auto" else recipe.objective.overflow
    head = recipe.objective.ending.kind
    long = np.flatnonzero(_longest_text(table) > limit if head == "vectors" else table.lengths > limit)
    if len(long) == 0:
        return table
    if policy == "refuse":
        shown = ", ".join(f"{table.source(row)} ({table.lengths[row]:,} tokens)" for row in long[:SHOWN])
        more = f" and {len(long) - SHOWN:,} more" if len(long) > SHOWN else ""
        raise UserError(
            f"{len(long):,} of {len(table):,} examples are longer than data.max_length ({limit:,} tokens): "
            f"{shown}{more}. Raise data.max_length, or set data.overflow to truncate, split or drop "
            "(they are then counted)."
        )
    if head != "vocabulary":
        return TokenTable.build(_fit_labeled(table, limit, policy == "drop", head, report, closing))
    return TokenTable.build(_fit_next_token(table, limit, policy, report))


def _joined(table: TokenTable, limit: int, report: DataReport) -> TokenTable:
    """All rows concatenated and cut every `limit` tokens; a piece's source is the row that it begins in."""
    pieces = []
    for start, ids, loss_mask in _cut(table.ids, table.loss_mask, limit, report):
        row = int(np.searchsorted(table.offsets, start, side="right")) - 1
        pieces.append((ids, loss_mask, table.source(row)))
    report.joined += len(pieces)
    return TokenTable.build(pieces)


def _longest_text(table: TokenTable) -> NDArray[np.int64]:
    """(rows,) tokens of each row's longest text; the loss mask is set on the last token of each text."""
    longest = [np.diff(np.flatnonzero(loss_mask), prepend=-1).max() for _, loss_mask in table]
    return np.array(longest, np.int64)


def _fit_labeled(
    table: TokenTable, limit: int, drop: bool, head: str, report: DataReport, closing: int
) -> Iterator[Tokens]:
    """Labeled rows. A text over the limit loses tokens at its end, before the closing tokens. The loss mask stays on a
    text's last token; words that are cut lose their tags."""
    for ids, loss_mask, source, *targets in table.rows():
        if head == "vectors":
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
            if head != "tags":
                marks = np.zeros(len(kept), np.bool_)
                marks[np.cumsum([len(text) for text in texts]) - 1] = True
                yield ids[kept], marks, source, *targets
            elif loss_mask[kept].any():
                yield ids[kept], loss_mask[kept], source, targets[0][: int(loss_mask[kept].sum())]
            else:
                report.unlearnable += 1


def _fit_next_token(table: TokenTable, limit: int, policy: str, report: DataReport) -> Iterator[Tokens]:
    without_loss: list[Source] = []
    for ids, loss_mask, source, *_ in table.rows():
        if len(ids) <= limit:
            yield ids, loss_mask, source
        elif policy == "drop":
            report.dropped += 1
        elif policy == "truncate":
            report.truncated += 1
            if loss_mask[1:limit].any():
                yield ids[:limit], loss_mask[:limit], source
            else:
                without_loss.append(source)
        else:
            report.split += 1
            yield from ((piece, marks, source) for _, piece, marks in _cut(ids, loss_mask, limit, report))
    if without_loss:
        shown = ", ".join(str(source) for source in without_loss[:SHOWN])
        raise UserError(
            f"Truncated to data.max_length ({limit:,} tokens), {len(without_loss):,} examples have no loss token left: "
            f"{shown}. Raise data.max_length, or set data.overflow: drop."
        )


def _cut(
    ids: NDArray[np.int32], loss_mask: NDArray[np.bool_], limit: int, report: DataReport
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.bool_]]]:
    """Pieces of `limit` tokens and their start positions. Each begins with the last token of the piece before, without
    loss, so that every token is predicted exactly once."""
    for start in range(0, len(ids) - 1, limit - 1):
        piece = loss_mask[start : start + limit].copy()
        piece[0] = loss_mask[0] if start == 0 else False
        if piece[1:].any():
            yield start, ids[start : start + limit], piece
        else:
            report.unlearnable += 1
