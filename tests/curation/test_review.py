"""Verdicts are on the disk at once, survive any end of the process, and are what cleaning does."""

import json
from pathlib import Path

import pytest
from curated import read, sentence, write

from tunesmith.curation.clean import data_clean
from tunesmith.curation.review import Reviewed, ShownRow, data_review
from tunesmith.errors import UserError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [{"text": sentence(n), "label": f"l{n % 2}"} for n in range(5)])


def session(
    rows: Path, keys: str, reviewer: str = "anna", labels: tuple[str, ...] = ()
) -> tuple[Reviewed, list[ShownRow]]:
    shown: list[ShownRow] = []
    pressed = iter(keys)

    def ask(row: ShownRow) -> str:
        shown.append(row)
        return next(pressed, "q")

    return data_review(rows, ask, reviewer=reviewer, labels=labels), shown


def test_a_session_goes_on_after_the_last_verdict(rows: Path) -> None:
    first, shown = session(rows, "ksd")
    assert (first.verdicts, first.skipped, first.done, first.rows) == ({"keep": 1, "drop": 1}, 1, 2, 5)
    assert [row.record.source.row for row in shown] == [1, 2, 3, 4]
    content = first.path.read_bytes()
    first.path.write_bytes(content + content[:40])  # killed while it was written
    second, again = session(rows, "kkk")
    assert [(row.number, row.record.source.row) for row in again] == [(3, 2), (4, 4), (5, 5)]
    assert second.done == 5
    assert first.path.read_bytes().startswith(content)
    assert session(rows, "")[1] == []
    assert len(session(rows, "", reviewer="bert")[1]) == 1, "another reviewer sees all rows"


def test_a_verdict_can_be_undone(rows: Path) -> None:
    found, shown = session(rows, "ksuud")
    assert [(row.number, row.is_undoable) for row in shown] == [
        (1, False), (2, True), (3, True), (2, True), (1, False), (2, True),
    ]  # fmt: skip
    assert [(line["verdict"], line["source"].split()[-1]) for line in read(found.path)] == [("drop", "1")]


def test_cleaning_does_what_was_said_of_a_sample(rows: Path, tmp_path: Path) -> None:
    sample = write(tmp_path / "sample.jsonl", [{"label": row["label"], "text": row["text"]} for row in read(rows)[2:4]])
    reviewed, shown = session(sample, "2d", labels=("l0", "l1"))
    assert shown[0].keys == "kd12sq"
    found = data_clean(rows, tmp_path / "clean.jsonl", verdicts=[reviewed.path])
    assert [row["label"] for row in read(found.file)] == ["l0", "l1", "l1", "l0"]


def test_what_checks_say_is_shown_and_malformed_rows_are_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl", [{"text": "Mail anna.beck@firma.de.", "label": "a"}, {"text": "", "label": "a"}]
    )
    found, shown = session(path, "k")
    assert [mark.partition(":")[0] for mark in shown[0].marks] == ["personal_data"]
    assert (found.rows, found.malformed) == (1, 1)


def test_other_files_and_too_many_labels_are_refused(rows: Path, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl.verdicts.jsonl", [{"text": "no verdict"}])
    with pytest.raises(UserError, match="is no verdict"):
        session(rows, "k")
    with pytest.raises(UserError, match="10 labels are more than there are keys"):
        session(rows, "k", labels=tuple(json.dumps(n) for n in range(10)))
