"""`tunesmith data review`: somebody looks at rows and says which to keep, one key a row."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from tunesmith.checks.driver import check_data
from tunesmith.checks.record import Record
from tunesmith.curation.marked import marks_by_row
from tunesmith.curation.origin import kept_marks
from tunesmith.curation.rows import Item, Rows
from tunesmith.curation.verdicts import Verdict, digest_of_line
from tunesmith.data.appended_rows import AppendedRows
from tunesmith.data.example import Source
from tunesmith.errors import UserError
from tunesmith.run import Subscriber

SUFFIX = ".verdicts.jsonl"
MOST_LABELS = 9
"""Keys are 1 to 9."""


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row as it is shown.

    Attributes:
        number: of the row, from 1.
        total: rows to review, with those of earlier sessions.
        record: its texts.
        marks: what checks say of it, each with the check's name.
        labels: that the keys 1, 2, … give it.
        is_undoable: whether there is a verdict of this session to undo.
    """

    number: int
    total: int
    record: Record
    marks: tuple[str, ...]
    labels: tuple[str, ...]
    is_undoable: bool

    @property
    def keys(self) -> str:
        """What can be pressed: keep, drop, a label's number, skip, undo, quit."""
        numbers = "".join(str(number) for number in range(1, len(self.labels) + 1))
        return f"kd{numbers}s{'u' if self.is_undoable else ''}q"


AskRow = Callable[[ShownRow], str]
"""Shows a row, and returns one of its keys."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """The result of `data_review`.

    Attributes:
        path: of the verdicts.
        reviewer: who reviewed.
        verdicts: of this session, by kind.
        skipped: rows of this session; they are shown again.
        done: rows on which the reviewer has a verdict, of all sessions.
        rows: how many there are.
        malformed: rows that cannot be read; nobody is asked for them.
    """

    path: Path
    reviewer: str
    verdicts: Mapping[str, int]
    skipped: int
    done: int
    rows: int
    malformed: int


def data_review(
    path: str | Path,
    ask: AskRow,
    output: str | Path | None = None,
    *,
    reviewer: str,
    labels: Sequence[str] = (),
    subscribers: Sequence[Subscriber] = (),
) -> Reviewed:
    """Show somebody rows one by one, with what checks say of them, and write the verdicts.

    A verdict is on the disk before the next row is shown. The same call continues after the last verdict. `data_clean`
    reads the verdicts, of the same rows in any file.

    Args:
        path: a file of rows, all of which are kept in memory: draw some with `data_sample` first.
        ask: shows a row and returns a key.
        output: the file of verdicts, to which they are appended; `PATH.verdicts.jsonl` by default.
        reviewer: who says so.
        labels: up to nine, which a key gives a row.
        subscribers: receive `progress` events.

    Returns:
        What was reviewed.

    Raises:
        UserError: the rows cannot be read, or the file of verdicts cannot be written or holds something else.
    """
    if len(labels) > MOST_LABELS:
        raise UserError(f"{len(labels)} labels are more than there are keys: give {MOST_LABELS} at most.")
    source = Path(path)
    target = source.with_name(source.name + SUFFIX) if output is None else Path(output)
    rows = Rows(path, subscribers)
    every = list(rows.items())
    items = [item for item in every if item.record is not None]
    marks = _marks(source, items, subscribers)
    with AppendedRows[Verdict].opened(target, Verdict.of, Verdict.values) as file:
        known = {verdict.row for verdict in file.entries if verdict.reviewer == reviewer}
        left = [item for item in items if digest_of_line(item.line) not in known]
        session = _Session(file, reviewer, tuple(labels), marks, len(items) - len(left))
        session.run(left, ask)
    kinds = Counter(each for each in session.history if each is not None)
    done = len(items) - len(left) + sum(kinds.values())
    return Reviewed(
        target, reviewer, dict(kinds), session.history.count(None), done, len(items), len(every) - len(items)
    )


def _marks(path: Path, items: Sequence[Item], subscribers: Sequence[Subscriber]) -> Mapping[Source, tuple[str, ...]]:
    """What checks say of the rows: of all rows that they were chosen from, if that is known, else of these."""
    sources = [item.source for item in items]
    kept = kept_marks(path)
    if len(kept) == len(items):
        return dict(zip(sources, kept, strict=True))
    found = marks_by_row(check_data(path, subscribers=subscribers), set(sources))
    return {source: tuple(details) for source, details in found.items()}


@dataclass
class _Session:
    """Asks for rows, and keeps what is answered.

    Attributes:
        file: of the verdicts.
        reviewer: who says so.
        labels: that keys give.
        marks: what checks say, by row.
        before: rows with a verdict of earlier sessions.
    """

    file: AppendedRows[Verdict]
    reviewer: str
    labels: tuple[str, ...]
    marks: Mapping[Source, tuple[str, ...]]
    before: int

    def __post_init__(self) -> None:
        self.history: list[str | None] = []

    def run(self, items: Sequence[Item], ask: AskRow) -> None:
        """Ask for all rows, or until somebody quits."""
        total = self.before + len(items)
        while len(self.history) < len(items):
            item, started = items[len(self.history)], monotonic()
            record: Any = item.record
            number = self.before + len(self.history) + 1
            marks = self.marks.get(item.source, ())
            key = ask(ShownRow(number, total, record, marks, self.labels, bool(self.history)))
            if key == "q":
                return
            if key == "u":
                self._undo()
            elif key == "s":
                self.history.append(None)
            else:
                self._say(item, key, round(monotonic() - started, 1))

    def _undo(self) -> None:
        if self.history and self.history.pop() is not None:
            self.file.pop()

    def _say(self, item: Item, key: str, seconds: float) -> None:
        kind: Any = {"k": "keep", "d": "drop"}.get(key, "label")
        label = self.labels[int(key) - 1] if kind == "label" else None
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        row = digest_of_line(item.line)
        self.file.append(Verdict(row, kind, self.reviewer, now, seconds, str(item.source), label))
        self.history.append(kind)
