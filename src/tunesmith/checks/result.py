"""What the checks found: every marked row, kept on disk, so that memory does not grow with them."""

import heapq
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.checks.check import Severity
from tunesmith.data.example import Source
from tunesmith.errors import UserError

RESULT = "result.json"
"""The file with everything but the marks."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A row that a check marks.

    Attributes:
        source: the file and row.
        detail: what is wrong with it, as a short clause.
        others: other rows concerned, such as the row that it repeats; they may be in a file named by `against`.
        badness: among the rows that the same check marks: the worst have the highest.
    """

    source: Source
    detail: str
    others: tuple[Source, ...] = ()
    badness: float = 0.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: as in `--checks`: `near_duplicates`.
        title: for people: "Near-duplicates".
        severity: `error`, `warning` or `note`.
        advice: what to do about the marked rows, as a sentence.
        count: of the marked rows.
        path: of the file with the marks, one a line; missing if there are none.
        about: what the check says of the whole set, such as how often it errs there; empty if it says nothing.
    """

    name: str
    title: str
    severity: Severity
    advice: str
    count: int
    path: Path
    about: str = ""

    @property
    def marks(self) -> Iterator[Mark]:
        """All marks, in the order of the files and rows; each use reads them anew."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as lines:
            for line in lines:
                yield mark_of(json.loads(line))

    def first(self, most: int) -> list[Mark]:
        """The first marks.

        Args:
            most: how many.
        """
        return list(islice(self.marks, most))

    def worst(self, most: int, of_rows: Callable[[Source], float] = lambda row: 0.0) -> list[Mark]:
        """The worst marks, the worst first; of equally bad ones those of worse rows, then the first.

        Args:
            most: how many.
            of_rows: how bad a row is by all checks (`tunesmith.checks.worst`).
        """
        return heapq.nlargest(most, self.marks, key=lambda mark: (mark.badness, of_rows(mark.source)))


@dataclass(frozen=True, slots=True)
class DataChecks:
    """What all checks found.

    Attributes:
        rows: that were read, malformed ones too.
        files: that were read, as the user named them.
        results: of each check that ran, also of those that marked nothing.
        summary: figures of the rows: `formats` by file, `lengths`, `labels`, `words`, ...
        directory: where the marks are: in the user's cache.
        cached: whether they are from an earlier check of the same content.
    """

    rows: int
    files: tuple[str, ...]
    results: tuple[CheckResult, ...]
    summary: dict[str, Any]
    directory: Path
    cached: bool = False

    def __getitem__(self, name: str) -> CheckResult:
        """The result of a check.

        Raises:
            UserError: it did not run.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise UserError(f"{name} is not one of the checks that ran: {', '.join(each.name for each in self.results)}.")

    def __contains__(self, name: str) -> bool:
        return any(result.name == name for result in self.results)

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks with severity `error` that marked rows."""
        return tuple(result for result in self.results if result.count and result.severity == "error")

    def to_dict(self, most: int) -> dict[str, Any]:
        """As `tunesmith data check --json` prints it.

        Args:
            most: how many rows of a check are listed; its count is of all.
        """
        return {"rows": self.rows, "checks": [_check_to_dict(result, most) for result in self.results]}


def write_result(checks: DataChecks) -> None:
    """Write everything but the marks into the directory."""
    results = [{**asdict(result), "path": str(result.path.relative_to(checks.directory))} for result in checks.results]
    values = {"rows": checks.rows, "files": checks.files, "results": results, "summary": checks.summary}
    (checks.directory / RESULT).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def read_result(directory: Path) -> DataChecks:
    """The opposite of `write_result`.

    Raises:
        OSError, ValueError, KeyError, TypeError: there is none, or it is broken.
    """
    values = json.loads((directory / RESULT).read_text(encoding="utf-8"))
    results = tuple(CheckResult(**{**each, "path": directory / each["path"]}) for each in values["results"])
    return DataChecks(values["rows"], tuple(values["files"]), results, values["summary"], directory, cached=True)


def line_of(mark: Mark) -> str:
    """A mark as a line of its file, with the line's end."""
    others = [[other.file, other.row] for other in mark.others]
    badness = [float(f"{mark.badness:.6g}")] if mark.badness else []
    values = [mark.source.file, mark.source.row, mark.detail, *([others] if others or badness else []), *badness]
    return json.dumps(values, ensure_ascii=True) + "\n"


def mark_of(values: list[Any]) -> Mark:
    """The opposite of `line_of`, of the parsed line."""
    file, row, detail, *rest = values
    others = tuple(Source(*each) for each in (rest[0] if rest else ()))
    return Mark(Source(file, row), detail, others, rest[1] if len(rest) > 1 else 0.0)


def _check_to_dict(result: CheckResult, most: int) -> dict[str, Any]:
    rows = [{"file": mark.source.file, "row": mark.source.row, "detail": mark.detail} for mark in result.first(most)]
    return {"name": result.name, "severity": result.severity, "count": result.count, "rows": rows}
