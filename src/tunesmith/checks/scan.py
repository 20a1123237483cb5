"""The first pass: workers read rows, run the checks that need one row, and sketch it for the others."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tunesmith.checks.check import RowCheck
from tunesmith.checks.inputs import Task, rows_of
from tunesmith.checks.record import Record, record_of
from tunesmith.checks.result import Mark, line_of
from tunesmith.checks.sketch import Sketches, sketches
from tunesmith.data.example import Example, Malformed
from tunesmith.data.read import Row
from tunesmith.data.row_formats import to_example

LABELS = 10_000
"""Different labels of a task that are counted; more are no classes."""


@dataclass
class Part:
    """What a worker found in a task's rows.

    Attributes:
        file: the rows' file.
        rows: how many there are, malformed ones too.
        sketches: of the well-formed ones.
        marks: lines of marks, by check.
        counts: of the marks, by check.
        labels: rows by label.
        size: bytes of the file that were read.
    """

    file: str
    rows: int
    sketches: Sketches
    marks: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    size: int = 0


@dataclass(frozen=True)
class Scanner:
    """Checks rows one by one.

    Attributes:
        checks: that need one row.
        marks_malformed: whether malformed rows are marked.
        views: of the rows whose shingles are kept.
    """

    checks: Sequence[RowCheck]
    marks_malformed: bool
    views: tuple[str, ...]

    def part(self, task: Task) -> Part:
        """What is found in the rows of a task."""
        rows = 0
        records: list[Record] = []
        marks: dict[str, list[str]] = {}
        labels: Counter[str] = Counter()
        for row in rows_of(task):
            rows += 1
            example = _example(row, task)
            if isinstance(example, Malformed):
                if self.marks_malformed:
                    marks.setdefault("malformed", []).append(line_of(Mark(example.source, example.reason)))
                continue
            record = record_of(example)
            records.append(record)
            if record.label is not None:
                labels[record.label] += 1
            for name, detail in self._problems(record):
                marks.setdefault(name, []).append(line_of(Mark(record.source, detail)))
        counts = Counter({name: len(lines) for name, lines in marks.items()})
        lines = {name: "".join(lines) for name, lines in marks.items()}
        if len(labels) > LABELS:
            labels = Counter(dict(labels.most_common(LABELS)))
        return Part(task.file, rows, sketches(records, self.views), lines, counts, labels, task.size)

    def _problems(self, record: Record) -> Iterator[tuple[str, str]]:
        for check in self.checks:
            if (detail := check.find(record)) is not None:
                yield check.name, detail


def _example(row: Row | Malformed, task: Task) -> Example | Malformed:
    if isinstance(row, Malformed) or not task.layout.format:
        return row if isinstance(row, Malformed) else Malformed(row.source, "in no known format")
    return to_example(row, task.layout.format, task.layout.columns)


_scanner: Scanner
"""In a worker."""


def start(scanner: Scanner) -> None:
    """Start a worker.

    Args:
        scanner: as it was when the worker was forked.
    """
    global _scanner
    _scanner = scanner


def part_of(task: Task) -> Part:
    """As `Scanner.part`, in a worker."""
    return _scanner.part(task)
