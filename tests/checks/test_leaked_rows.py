"""Leaked rows in memory are those that the check of leakage marks in files."""

import json
from pathlib import Path

from curated import sentence, write

from tunesmith.checks.driver import check_data
from tunesmith.checks.leaked_rows import leaked_rows
from tunesmith.checks.subject import Subject, of_files
from tunesmith.data.example import Example, Row, Source
from tunesmith.data.row_formats import to_example


def examples_of(path: Path) -> list[Example]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [to_example(Row(row, Source(str(path), n)), "question_answer", {}) for n, row in enumerate(rows, 1)]
    return [each for each in found if isinstance(each, Example)]


def test_leaked_rows_are_those_that_the_check_marks(tmp_path: Path) -> None:
    train = [{"question": f"Why is {sentence(n, 30)}?", "answer": sentence(n + 500, 20)} for n in range(30)]
    held_out = [{"question": f"Why is {sentence(n, 30)}?", "answer": sentence(n + 900, 20)} for n in range(60, 70)]
    held_out[1] = train[4]  # the same
    held_out[2] = {"question": train[5]["question"].upper(), "answer": "Another one."}  # the same input
    held_out[3] = {**train[6], "question": train[6]["question"].replace("Why", "How")}  # nearly the same
    held_out[4] = {"question": "And?", "answer": f"See: {sentence(7, 15)} and more."}  # 13 words in a row
    train[11]["question"] = "Why is it?"
    held_out[5] = {"question": "Why is it?", "answer": "It is."}  # a short one, the same input
    files = [write(tmp_path / f"{name}.jsonl", rows) for name, rows in (("held", held_out), ("train", train))]
    subject = of_files([files[0]], [files[1]])
    (result,) = check_data(Subject(subject.files, subject.others), only=["leakage"]).results
    found = leaked_rows(examples_of(files[0]), examples_of(files[1]))
    assert [(index + 1, leak.detail, leak.other) for index, leak in found.items()] == [
        (mark.source.row, mark.detail, mark.others[0]) for mark in result.marks
    ]
    assert [*found] == [1, 2, 3, 4, 5]


def test_without_rows_nothing_is_leaked(tmp_path: Path) -> None:
    rows = examples_of(write(tmp_path / "rows.jsonl", [{"question": "Why?", "answer": "So."}]))
    assert leaked_rows(rows, []) == leaked_rows([], rows) == {}
