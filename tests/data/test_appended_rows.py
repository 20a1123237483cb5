"""Rows that people add: each is on the disk at once, and the last one can be taken back."""

import json
from pathlib import Path

import pytest

from tunesmith.data.appended_rows import AppendedRows
from tunesmith.data.example import Malformed, Row
from tunesmith.errors import UserError


def number_of(row: Row | Malformed) -> int:
    assert isinstance(row, Row)
    return int(row.values["n"])


def opened(path: Path):
    return AppendedRows.opened(path, number_of, lambda number: {"n": number})


def test_a_row_that_is_taken_back_is_neither_in_the_file_nor_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "below" / "rows.jsonl"
    with opened(path) as rows:
        for number in (10, 200, 3):
            rows.append(number)
        rows.pop()
        assert rows.entries == [10, 200]
        assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [10, 200]
        rows.pop()
        rows.append(4000)
        assert rows.entries == [10, 4000]
    with opened(path) as rows:
        assert rows.entries == [10, 4000]
        rows.append(5)
        rows.pop()
    assert path.read_text() == '{"n": 10}\n{"n": 4000}\n'


def test_a_row_that_was_not_written_to_its_end_is_removed_and_a_whole_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n{"n": 2', encoding="utf-8")
    with opened(path) as rows:
        assert rows.entries == [1]
    path.write_text('{"n": 1}\n{"n": 2}', encoding="utf-8")
    with opened(path) as rows:
        rows.append(3)
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n{"n": 3}\n'


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "rows.jsonl"), pytest.raises(UserError), opened(tmp_path / "rows.jsonl"):
        pass
