"""Rows that cannot be read, and rows without content."""

from tunesmith.checks.check import RowCheck
from tunesmith.checks.record import Record

MALFORMED = RowCheck(
    "malformed",
    "Malformed rows",
    "error",
    "Fix these rows in the file, or remove them. Training leaves them out and counts them, up to data.max_malformed.",
    lambda record: None,  # such rows are no records: the scan marks them
)


def _empty(record: Record) -> str | None:
    if record.messages and not record.answer.strip() and not any("tool_calls" in turn for turn in record.messages):
        return "the answer is empty" if record.prompt.strip() else "it is empty"
    if not any(text.strip() for text in record.texts) and not record.messages:
        return "it is empty"
    return None


EMPTY = RowCheck("empty", "Empty rows", "error", "Remove them: there is nothing to learn from.", _empty)
