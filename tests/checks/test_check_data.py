"""Checking data: every row once, exact row numbers, resumed where it was killed, served from the cache."""

import gzip
import json
from pathlib import Path

import pytest
from command import output_of, typed

from tunesmith.checks import fingerprints
from tunesmith.checks.driver import check_data
from tunesmith.data.example import Source
from tunesmith.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def question(number: int, answer: str = "Because of the rain.") -> dict[str, str]:
    return {"question": f"Why is number {number} wet?", "answer": answer}


def test_json_has_the_shape_that_other_programs_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [question(1), question(2), question(1)])
    printed = output_of("data", "check", "rows.jsonl", "--json", "--only", "exact_duplicates")
    assert json.loads(printed) == {
        "rows": 3,
        "checks": [
            {
                "name": "exact_duplicates",
                "severity": "warning",
                "count": 1,
                "rows": [{"file": "rows.jsonl", "row": 3, "detail": "the same as rows.jsonl row 1"}],
            }
        ],
    }


def test_row_numbers_are_exact_in_every_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "CHUNK", 200)
    monkeypatch.setattr("tunesmith.checks.driver.ALONE", 0)  # with worker processes
    lines = [json.dumps(question(number)) for number in range(50)]
    lines[20] = ""  # blank lines count but are no rows
    lines[33] = "{broken"
    lines[44] = lines[7].upper().replace("QUESTION", "question").replace("ANSWER", "answer")
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = check_data("rows.jsonl")
    assert found.rows == 49
    assert [mark.source.row for mark in found["malformed"].marks] == [34]
    (mark,) = found["exact_duplicates"].marks
    assert (mark.source.row, mark.others) == (45, (Source("rows.jsonl", 8),))


def test_rows_are_marked_across_files_of_different_kinds(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [question(1)])
    (tmp_path / "b.csv").write_text('question,answer\n"Why is number 1 wet?",Because of the rain.\n', encoding="utf-8")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(question(1)) + "\n")
    marks = list(check_data(["a.jsonl", "b.csv", "c.jsonl.gz"])["exact_duplicates"].marks)
    assert [mark.source.file for mark in marks] == ["b.csv", "c.jsonl.gz"]


def test_a_killed_check_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "CHUNK", 200)
    write_rows(tmp_path / "rows.jsonl", [question(number % 30) for number in range(60)])
    whole = check_data("rows.jsonl", cache=False).to_dict(100)
    read: list[str] = []

    class Killed(BaseException):
        pass

    def kill(event: dict[str, object]) -> None:
        read.append(str(event["what"]))
        if len(read) == 5:
            raise Killed

    with pytest.raises(Killed):
        check_data("rows.jsonl", cache=False, subscribers=[kill])
    (directory,) = (tmp_path / "cache" / "data-checks").glob("*/rows")
    with (directory / "whole.bin").open("ab") as file:
        file.write(b"half of a part")
    read.clear()
    assert check_data("rows.jsonl", subscribers=[lambda event: read.append("part")]).to_dict(100) == whole
    parts = len((directory / "parts.jsonl").read_text().splitlines())
    assert len(read) == parts - 5


def test_the_same_content_is_read_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [question(1), question(1)])
    first, again = check_data("rows.jsonl"), check_data("rows.jsonl")
    assert (first.cached, again.cached) == (False, True)
    assert again.to_dict(10) == first.to_dict(10)
    write_rows(tmp_path / "rows.jsonl", [question(1), question(2)])
    assert check_data("rows.jsonl")["exact_duplicates"].count == 0


def test_checks_are_chosen_by_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [question(1)])
    assert "malformed" not in check_data("rows.jsonl", skip=["malformed"])
    with pytest.raises(UserError, match=r"exact_duplicate is not a check\. Did you mean exact_duplicates"):
        check_data("rows.jsonl", only=["exact_duplicate"])


def test_strict_fails_on_errors_only(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [question(1), question(1)])
    assert typed("data", "check", "rows.jsonl", "--strict").returncode == 0
    write_rows(tmp_path / "rows.jsonl", [question(1), question(2, "")])
    assert typed("data", "check", "rows.jsonl").returncode == 0
    assert typed("data", "check", "rows.jsonl", "--strict").returncode == 3
