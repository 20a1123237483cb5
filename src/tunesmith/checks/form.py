"""Rows that cannot be read, rows without content, and rows of unusual length."""

from collections.abc import Iterator

import numpy as np

from tunesmith.checks.check import RowCheck
from tunesmith.checks.record import Record
from tunesmith.checks.result import Mark
from tunesmith.checks.table import Table
from tunesmith.checks.table_check import TableCheck
from tunesmith.checks.traits import Trait

FENCE = 3.0
"""Interquartile ranges of the logarithm of the length beyond the quartiles: Tukey's outer fence (1977)."""

ENOUGH = 20
"""Rows from which some can be unusual."""

MALFORMED = RowCheck(
    "malformed",
    "Malformed rows",
    "error",
    "Fix these rows in the file, or remove them. Training leaves them out and counts them, up to data.max_malformed.",
    lambda record: None,  # such rows are no records: the scan marks them
    traits=Trait(0),
)


def _empty(record: Record) -> str | None:
    if record.messages and not record.answer.strip() and not any("tool_calls" in turn for turn in record.messages):
        return "the answer is empty" if record.prompt.strip() else "it is empty"
    if not any(text.strip() for text in record.texts) and not record.messages:
        return "it is empty"
    return None


EMPTY = RowCheck(
    "empty", "Empty rows", "error", "Remove them: there is nothing to learn from.", _empty, traits=Trait.BLANK
)


def _outliers(table: Table) -> Iterator[Mark]:
    if table.records < ENOUGH:
        return
    lengths = table.column("prompt_length")
    lengths += table.column("answer_length")  # a row has less than 4 GB
    logs = np.log1p(lengths, dtype=np.float64)
    low, middle, high = np.quantile(logs, (0.25, 0.5, 0.75)).tolist()
    margin = FENCE * max(high - low, 0.1)  # sets whose rows are nearly all of one length have no outliers at ± 30 %
    median = np.expm1(middle)
    for row in np.flatnonzero((logs > high + margin) | (logs < low - margin)).tolist():
        detail = f"{lengths[row]:,} characters; half of the rows have at most {median:,.0f}"
        yield Mark(table.source(row), detail, (), abs(float(logs[row]) - middle))


LENGTH_OUTLIERS = TableCheck(
    "length_outliers",
    "Rows of unusual length",
    "note",
    "Look at them: a very long row is often several in one, a very short one is often cut or empty.",
    _outliers,
)
