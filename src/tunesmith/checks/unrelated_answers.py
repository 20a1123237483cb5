"""Answers that do not belong to their prompt, by what a language model makes of it: its instruction-following
difficulty (`tunesmith.checks.difficulty`) beside that of the same answers after the prompts of other rows."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.labeled import examples_of
from tunesmith.checks.result import Mark
from tunesmith.checks.table import Table
from tunesmith.checks.table_check import TableCheck

if TYPE_CHECKING:
    from tunesmith.checks.difficulty import Answer, AnswerLosses

BATCH = 64
"""Rows that are read between two reports of progress."""

CONTROLS = 200
"""Rows, at most, whose answers are also read after the prompt of another one of them."""

FEWEST = 20
"""Controls from which their median counts."""

CANNOT_TELL = 0.25
"""The share of marked rows from which the model cannot tell answers from those to other prompts, and none is marked: of
those to other prompts it would mark half."""

Values = NDArray[np.float64]


def threshold(controls: Values) -> float:
    """The difficulty from which a row is marked: 1, where the prompt does not help at all, or the median of the
    controls if that is less.

    Args:
        controls: (rows,) the difficulty of answers after the prompts of other rows.
    """
    return min(1.0, float(np.median(controls))) if len(controls) >= FEWEST else 1.0


def _unrelated(table: Table) -> Iterator[Mark]:
    from tunesmith.checks.difficulty import AnswerLosses

    losses = AnswerLosses(table.models.reader)
    values = np.full(table.records, np.nan)
    controls: list[tuple[Answer, float]] = []
    every = max(1, table.records // CONTROLS)
    examples = enumerate(examples_of(table))
    while batch := list(islice(examples, BATCH)):
        answers = losses.answers([example for _, example in batch])
        rows = [row for (row, _), answer in zip(batch, answers, strict=True) if answer is not None]
        known = [answer for answer in answers if answer is not None]
        ids = [answer.ids for answer in known]
        after, alone = losses.after([answer.prompt for answer in known], ids), losses.alone(ids)
        values[rows] = after / np.maximum(alone, 1e-9)
        of_known = zip(rows, known, alone.tolist(), strict=True)
        controls += [(answer, loss) for row, answer, loss in of_known if row % every == 0]
        table.events.emit("progress", what="rows read by the model", done=batch[-1][0] + 1, total=table.records)
    beside = _controls(losses, controls[:CONTROLS])
    least = threshold(beside)
    marked = np.flatnonzero(values >= least)
    table.about["unrelated_answers"] = _about(values, beside, least, len(marked))
    if len(marked) < CANNOT_TELL * np.isfinite(values).sum():
        for row in marked.tolist():
            yield Mark(table.source(row), _detail(values[row]), (), float(values[row]))


def _controls(losses: "AnswerLosses", rows: "list[tuple[Answer, float]]") -> Values:
    """The difficulty of answers after the prompts of the next rows; without those whose prompt is the same."""
    answers = [answer for answer, _ in rows]
    others = [*answers[1:], *answers[:1]]
    pairs = [
        (other.prompt, answer.ids, alone)
        for (answer, alone), other in zip(rows, others, strict=True)
        if not np.array_equal(answer.prompt, other.prompt)
    ]
    found = [
        losses.after([prompt for prompt, _, _ in part], [ids for _, ids, _ in part])
        for part in (pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH))
    ]
    alone = np.array([loss for _, _, loss in pairs])
    ratios: Values = np.concatenate([*found, np.empty(0)]) / np.maximum(alone, 1e-9)
    return ratios


def _detail(value: float) -> str:
    helps = "its prompt does not help" if value >= 1 else "its prompt helps as little as another row's"
    return f"{helps}: {value:.2f} times the loss without it"


def _about(values: Values, controls: Values, least: float, marked: int) -> str:
    """The base rate, in sentences."""
    known = values[np.isfinite(values)]
    if not len(known):
        return "No row has a prompt and an answer that the model can read."
    left = len(values) - len(known)
    without = f" {left:,} rows have no answer after a prompt, or one too long for the model." if left else ""
    text = f"The loss after the prompt is {np.median(known):.2f} times that without it (median)"
    if len(controls) < FEWEST:
        return f"{text}.{without}"
    found = float((controls >= least).mean())
    text += f", and {np.median(controls):.2f} times after another row's prompt ({len(controls):,} tried).{without}"
    share = marked / len(known)
    if share >= CANNOT_TELL:
        return (
            f"{text} The model cannot tell: from {least:.2f} on are {found:.0%} of the answers to other prompts, but "
            f"also {share:.0%} of these. No row is marked; name a larger --model."
        )
    return f"{text} Marked from {least:.2f} on: {found:.0%} of answers to other prompts, and {share:.1%} of these rows."


UNRELATED_ANSWERS = TableCheck(
    "unrelated_answers",
    "Answers that do not belong to their prompt",
    "warning",
    "Read them beside their prompts: answers may have been swapped. An answer that anyone could guess is marked too.",
    _unrelated,
    when=lambda table: bool(table.models.reader) and table.records > 0,
)
