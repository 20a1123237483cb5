"""The worst rows come first, by how many checks mark them and how severe these are, and reviewers see why."""

import json
from pathlib import Path

import pytest
from curated import read, write

from tunesmith.checks.check import Severity
from tunesmith.checks.result import CheckResult, DataChecks, Mark, line_of, mark_of
from tunesmith.checks.worst import WorstRows
from tunesmith.curation.review import ShownRow, data_review
from tunesmith.curation.worst import data_worst
from tunesmith.data.example import Source
from tunesmith.errors import UserError

SECRET = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    answers = [f"It is {n}, of course." for n in range(6)]
    answers[1] = "It is <b>one</b>, of course."  # a note
    answers[2] = "Ask ann@web.de <b>now</b>, please."  # a warning and a note
    answers[3] = "Ask bob@web.de, please."  # a warning
    answers[4] = f"It is {SECRET}, of course."  # an error
    path = write(tmp_path / "rows.jsonl", [{"question": f"What is {n}?", "answer": a} for n, a in enumerate(answers)])
    path.write_text(path.read_text() + "{broken\n")
    return path


def test_errors_come_before_warnings_and_more_checks_before_fewer(rows: Path, tmp_path: Path) -> None:
    found = data_worst(rows, 3, tmp_path / "worst.jsonl")
    assert [row["question"] for row in read(found.file)] == ["What is 4?", "What is 2?", "What is 3?"]
    assert (found.rows, found.read, found.marked, found.malformed[0].rows) == (3, 7, 5, 1)
    every = data_worst(rows, 99, tmp_path / "all.jsonl")
    assert [row["question"] for row in read(every.file)][3:] == ["What is 1?"]


def test_reviewers_see_what_was_said_of_the_row_among_all(rows: Path, tmp_path: Path) -> None:
    rows.write_text(rows.read_text() + rows.read_text().splitlines()[0] + "\n")  # repeats a row that is not bad
    found = data_worst(rows, 4, tmp_path / "worst.jsonl")
    shown: list[ShownRow] = []

    def ask(row: ShownRow) -> str:
        shown.append(row)
        return "s"

    data_review(found.file, ask, reviewer="anna")
    checks = [[mark.partition(":")[0] for mark in row.marks] for row in shown]
    assert checks == [["secrets"], ["html", "personal_data"], ["personal_data"], ["exact_duplicates"]]
    origin = json.loads((tmp_path / "worst.jsonl.origin.json").read_text())
    assert origin["counts"]["rows"][0]["errors"] == 1


def test_rows_that_nothing_marks_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(3)])
    with pytest.raises(UserError, match="No check marks a row"):
        data_worst(path, 2, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def checked(directory: Path, *marks: tuple[str, Severity, list[Mark]]) -> DataChecks:
    results = []
    for name, severity, found in marks:
        path = directory / name
        path.write_text("".join(map(line_of, found)))
        results.append(CheckResult(name, name, severity, "", len(found), path))
    return DataChecks(9, ("a", "b"), tuple(results), {}, directory)


def test_each_check_counts_once_for_a_row_of_a_file(tmp_path: Path) -> None:
    one, same = Mark(Source("a", 3), "x"), Mark(Source("b", 3), "y")
    found = checked(tmp_path, ("e", "error", [one]), ("w", "warning", [one, one, same]), ("n", "note", [same]))
    worst = WorstRows(found)
    assert (worst.counts(Source("a", 3)).errors, worst.counts(Source("a", 3)).warnings) == (1, 1)
    assert (worst.counts(Source("b", 3)).warnings, worst.counts(Source("b", 3)).notes) == (1, 1)
    assert (len(worst), worst.badness(Source("a", 4))) == (2, 0)


def test_the_worst_marks_are_the_first_of_equally_bad_ones(tmp_path: Path) -> None:
    marks = [Mark(Source("a", row), "x", (), badness) for row, badness in enumerate((1.0, 3.0, 2.0, 3.0))]
    (result,) = checked(tmp_path, ("w", "warning", marks)).results
    assert [mark.source.row for mark in result.worst(3)] == [1, 3, 2]
    assert [mark.source.row for mark in result.worst(2, lambda row: row.row)] == [3, 1]


@pytest.mark.parametrize("others", [(), (Source("b", 2),)])
@pytest.mark.parametrize("badness", [0.0, 0.25])
def test_a_mark_is_read_as_it_was_written(others: tuple[Source, ...], badness: float) -> None:
    mark = Mark(Source("a", 1), "x", others, badness)
    assert mark_of(json.loads(line_of(mark))) == mark
