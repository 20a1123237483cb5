"""The first pass: workers read rows, run the checks that need one row, and sketch it for the others."""

import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.check import Detail, RowCheck
from tunesmith.checks.endings import OPEN
from tunesmith.checks.groups import Lexicon
from tunesmith.checks.inputs import Task, rows_of
from tunesmith.checks.record import Record, record_of
from tunesmith.checks.result import Mark, line_of
from tunesmith.checks.row_traits import TraitReader
from tunesmith.checks.sketch import Arrays, Sketch, arrays_of, joined, opening, sketch
from tunesmith.checks.traits import Trait
from tunesmith.checks.word_runs import RUN, KnownRuns, word_runs
from tunesmith.data.example import Example, Malformed, Source
from tunesmith.data.read import Row
from tunesmith.data.row_formats import to_example
from tunesmith.data.split import is_held_out

if TYPE_CHECKING:
    from tunesmith.checks.rendering import Renders

BATCH = 256
"""Rows whose texts are in memory at once: few enough for the processor's cache."""

COUNTED = 1_000
"""Different labels, and openings of answers, of a task that are counted: the most frequent ones."""

SHARED_RUNS = "shared_runs"
"""The name of the marks that the check of leakage continues with."""


@dataclass
class Part:
    """What a worker found in a task's rows.

    Attributes:
        file: the rows' file.
        is_other: whether the rows are of a file that others are compared with.
        rows: how many there are, malformed ones too.
        arrays: the columns of the well-formed ones.
        marks: lines of marks, by check.
        counts: of the marks, by check.
        labels: rows by label.
        openings: rows by the first words of their answer.
        tokens, loss_tokens: as the recipe renders the rows; 0 without one.
        size: bytes of the file that were read.
    """

    file: str
    is_other: bool
    rows: int
    arrays: Arrays
    marks: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    loss_tokens: int = 0
    size: int = 0


@dataclass(frozen=True)
class Scanner:
    """Checks rows one by one.

    Attributes:
        checks: that need one row. Those that the scan itself does are named only.
        views: of the rows whose shingles are kept.
        lexicon: words for groups of people, praise and blame.
        keeps_runs: whether runs of words are kept, of other files.
        known: runs of words of other files.
        source_of_other: of the index of a row of other files.
        renders: how rows become tokens, if a recipe says it.
    """

    checks: Sequence[RowCheck]
    views: tuple[str, ...]
    lexicon: Lexicon
    keeps_runs: bool = False
    known: KnownRuns | None = None
    source_of_other: Callable[[int], Source] | None = None
    renders: "Renders | None" = None

    def part(self, task: Task) -> Part:
        """What is found in the rows of a task."""
        with _uncollected():
            return self._part(task)

    @cached_property
    def _reader(self) -> TraitReader:
        return TraitReader(self.lexicon)

    def _part(self, task: Task) -> Part:
        part = Part(task.file, task.is_other, 0, {}, size=task.size)
        marks: dict[str, list[Mark]] = defaultdict(list)
        examples: list[Example] = []
        arrays: list[Arrays] = []
        rows = rows_of(task)
        while batch := list(islice(rows, BATCH)):
            part.rows += len(batch)
            read = [example_of(row, task) for row in batch]
            marks["malformed"] += [Mark(each.source, each.reason) for each in read if isinstance(each, Malformed)]
            found = [each for each in read if isinstance(each, Example)]
            arrays.append(self._batch(list(map(record_of, found)), part, marks))
            if self.renders is not None or task.held_out:
                examples += found
        part.arrays = joined(arrays or [self._batch([], part, marks)])
        part.arrays["held_out"] = np.zeros(len(part.arrays["row"]), np.bool_)
        if task.held_out:
            part.arrays["held_out"][:] = [is_held_out(each, task.held_out) for each in examples]
        if self.renders is not None and not task.is_other:
            part.tokens, part.loss_tokens = self.renders.of(examples, marks)
        wanted = {SHARED_RUNS, *(check.name for check in self.checks)} if not task.is_other else set()
        marks = {name: found for name, found in marks.items() if name in wanted and found}
        part.marks = {name: "".join(map(line_of, found)) for name, found in marks.items()}
        part.counts = Counter({name: len(found) for name, found in marks.items()})
        part.labels, part.openings = most_frequent(part.labels), most_frequent(part.openings)
        return part

    def _batch(self, records: Sequence[Record], part: Part, marks: dict[str, list[Mark]]) -> Arrays:
        """The columns of some rows; what is wrong with them is added to the marks."""
        has = self._reader.of(records)
        sketches = list(map(sketch, records, has.groups, has.sentiment))
        arrays = arrays_of(sketches, self.views)
        if not part.is_other:
            traits = has.traits | np.where(arrays["ending"] == OPEN, np.uint32(Trait.OPEN), np.uint32(0))
            self._check(records, traits, marks)
            part.labels.update(record.label for record in records if record.label is not None)
            part.openings.update(filter(None, (opening(row.texts["answer"]) for row in sketches)))
        return arrays | self._runs(part, sketches, marks)

    def _check(self, records: Sequence[Record], traits: NDArray[np.uint32], marks: dict[str, list[Mark]]) -> None:
        for check in self.checks:
            for index in np.flatnonzero(traits & np.uint32(check.traits)).tolist():
                if (found := check.find(records[index])) is not None:
                    detail = found if isinstance(found, Detail) else Detail(found, 0.0)
                    marks[check.name].append(Mark(records[index].source, detail.text, (), detail.badness))

    def _runs(self, part: Part, sketches: Sequence[Sketch], marks: dict[str, list[Mark]]) -> Arrays:
        """The runs of words of other files, and which rows have one in common with them."""
        texts = [row.texts["text"] for row in sketches]
        arrays: Arrays = {}
        if part.is_other and self.keeps_runs:
            arrays["runs"], arrays["run_counts"] = word_runs(texts)
        if not part.is_other and self.known is not None and self.source_of_other is not None:
            leaks = np.zeros(len(texts), np.bool_)
            for index, other, words in self.known.shared(texts):
                leaks[index] = True
                source, own = self.source_of_other(other), Source(part.file, sketches[index].values[0])
                detail = f"{RUN} words in a row are those of {source}: {words!r}"
                marks[SHARED_RUNS].append(Mark(own, detail, (source,)))
            arrays["leak"] = leaks
        return arrays


def most_frequent(counts: Counter[str]) -> Counter[str]:
    """The `COUNTED` most frequent ones.

    Args:
        counts: of all.
    """
    return counts if len(counts) <= COUNTED else Counter(dict(counts.most_common(COUNTED)))


def example_of(row: Row | Malformed, task: Task) -> Example | Malformed:
    """A row as an example, or why it is malformed.

    Args:
        row: as read.
        task: that it belongs to.
    """
    if isinstance(row, Malformed) or not task.layout.format:
        return row if isinstance(row, Malformed) else Malformed(row.source, "in no known format")
    return to_example(row, task.layout.format, task.layout.columns)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector: rows have no cycles, and it scans all of a task's again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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
