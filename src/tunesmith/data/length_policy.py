"""The length policy: examples over `data.max_length` are refused, truncated, split or dropped, and counted."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.data import Data
from tunesmith.config.head import Head
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.data.example import Source
from tunesmith.data.report import SHOWN, DataReport
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.errors import UserError


def apply_length_policy(
    data: Data, objective: ObjectiveConfig, table: TokenTable, report: DataReport, closing: int = 0
) -> TokenTable:
    """Apply `data.overflow` to the examples that are longer than `data.max_length`.

    Args:
        data: sets the policy and the limit.
        objective: whether it concatenates rows, its usual policy, and its head.
        table: the rows of one side, training or held-out.
        report: its counts are updated.
        closing: how many tokens the tokenizer adds after a text; heads that do not predict the next token keep them.

    Returns:
        A table whose rows have at most `data.max_length` tokens (each text of a row, if the row holds several).

    Raises:
        UserError: the policy is to refuse, or a truncated example has no loss token left.
    """
    limit = data.max_length
    if objective.concatenates_rows:
        return _joined(table, limit, report)
    policy = data.overflow if data.overflow != "auto" else objective.overflow
    head = objective.head
    longest = head.text_lengths(table)
    long = np.flatnonzero(longest > limit)
    if len(long) == 0:
        return table
    if policy == "split" and table.completions is not None:
        raise UserError(
            "data.overflow: split would tear completions from their prompt. Set it to truncate or drop, or raise "
            "data.max_length."
        )
    if policy == "refuse":
        shown = ", ".join(f"{table.source(row)} ({longest[row]:,} tokens)" for row in long[:SHOWN])
        more = f" and {len(long) - SHOWN:,} more" if len(long) > SHOWN else ""
        raise UserError(
            f"{len(long):,} of {len(table):,} examples are longer than data.max_length ({limit:,} tokens): "
            f"{shown}{more}. Raise data.max_length, or set data.overflow to truncate, split or drop "
            "(they are then counted)."
        )
    return TokenTable.build(_fitted(table, set(long.tolist()), limit, policy, head, report, closing))


def _joined(table: TokenTable, limit: int, report: DataReport) -> TokenTable:
    """All rows concatenated and cut every `limit` tokens; a piece's source is the row that it begins in."""
    pieces = []
    for start, ids, loss_mask in _cut(table.ids, table.loss_mask, limit, report):
        row = int(np.searchsorted(table.offsets, start, side="right")) - 1
        pieces.append((ids, loss_mask, table.source(row)))
    report.joined += len(pieces)
    return TokenTable.build(pieces)


def _fitted(
    table: TokenTable, long: set[int], limit: int, policy: str, head: Head, report: DataReport, closing: int
) -> Iterator[Tokens]:
    """The rows, with those in `long` dropped, truncated or split."""
    without_loss: list[Source] = []
    for number, row in enumerate(table.rows()):
        if number not in long:
            yield row
        elif policy == "drop":
            report.dropped += 1
        elif policy == "truncate":
            report.truncated += 1
            truncated = (
                head.truncated(row, limit, closing) if table.completions is None else _cut_completions(row, limit)
            )
            if truncated is not None:
                yield truncated
            elif head.generates_text:
                without_loss.append(row[2])
            else:
                report.unlearnable += 1
        else:
            report.split += 1
            ids, loss_mask, source, *_ = row
            yield from ((piece, marks, source) for _, piece, marks in _cut(ids, loss_mask, limit, report))
    if without_loss:
        shown = ", ".join(str(source) for source in without_loss[:SHOWN])
        raise UserError(
            f"Truncated to data.max_length ({limit:,} tokens), {len(without_loss):,} examples have no loss token left: "
            f"{shown}. Raise data.max_length, or set data.overflow: drop."
        )


def _cut_completions(row: Tokens, limit: int) -> Tokens | None:
    """Cut the end of each completion that is longer than the limit together with its beginning.

    Returns:
        The row; None if a completion has no loss token left, or its targets' token is cut off.
    """
    ids, mask, source, targets, (lengths, scores) = row
    shared = lengths[0]
    parts = np.split(np.arange(len(ids)), np.cumsum(lengths)[:-1])
    kept = [parts[0], *(part[: max(0, limit - shared)] for part in parts[1:])]
    if not all(mask[part].any() for part in kept[1:]):
        return None
    at = np.concatenate(kept)
    return ids[at], mask[at], source, targets, ((shared, *map(len, kept[1:])), scores)


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
