"""Broken files: never a traceback, always a named row, and the other rows are checked all the same."""

import gzip
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.checks.driver import check_data
from tunesmith.checks.result import DataChecks
from tunesmith.errors import UserError

ROW = json.dumps({"question": "Why is it wet?", "answer": "Because of the rain."}).encode() + b"\n"
OTHER = json.dumps({"question": "Why is it dry?", "answer": "Because of the sun."}).encode() + b"\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def malformed(checks: DataChecks) -> list[int]:
    return [mark.source.row for mark in checks["malformed"].marks]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        pytest.param("a.jsonl", ROW + b"\xff\xfe{}\n" + ROW, [2], id="not UTF-8"),
        pytest.param("a.jsonl", b"\xef\xbb\xbf" + ROW + b"{\n" + ROW, [2], id="byte order mark"),
        pytest.param("a.jsonl", ROW + b'{"question": "\\ud800", "answer": "b"}\n', [2], id="half a surrogate pair"),
        pytest.param("a.jsonl", ROW + b"\x00\x00\x00\n" + OTHER, [2], id="NUL bytes"),
        pytest.param("a.jsonl", ROW + b"[" * 100_000 + b"\n" + OTHER, [2], id="deep JSON"),
        pytest.param("a.jsonl", ROW + b'{"question": 5, "answer": null}\n', [2], id="other types"),
        pytest.param("a.jsonl", ROW + OTHER[:-9], [2], id="cut off"),
        pytest.param("a.csv", b'question,answer\na,b\n"c,d\ne,f\n', [2], id="a stray quote"),
        pytest.param("a.jsonl.gz", gzip.compress(ROW * 2000 + OTHER)[:-20], None, id="truncated gzip"),
    ],
)
def test_the_broken_row_is_named_and_the_others_are_checked(name: str, content: bytes, rows: list[int] | None) -> None:
    Path(name).write_bytes(content)
    checks = check_data(name)
    found = malformed(checks)
    if rows is None:
        assert len(found) == 1
        assert "reading stops here" in checks["malformed"].first(1)[0].detail
    else:
        assert found == rows
        assert checks.rows > len(found)


def test_a_file_in_utf_16_is_one_named_row() -> None:
    Path("a.jsonl").write_bytes(ROW.decode().encode("utf-16"))
    (mark,) = check_data("a.jsonl")["malformed"].marks
    assert (mark.source.row, "UTF-16" in mark.detail) == (1, True)


def test_a_very_long_line_is_one_row() -> None:
    long = json.dumps({"question": "Why?", "answer": "word " * 400_000}).encode() + b"\n"
    Path("a.jsonl").write_bytes(ROW + long + OTHER)
    checks = check_data("a.jsonl")
    assert (checks.rows, malformed(checks)) == (3, [])


def test_a_directory_that_contains_itself_is_read_once() -> None:
    Path("rows").mkdir()
    Path("rows/a.jsonl").write_bytes(ROW)
    Path("rows/loop").symlink_to("../rows")
    assert check_data("rows").rows == 1


def test_a_file_that_changes_while_it_is_read_is_refused() -> None:
    Path("a.jsonl").write_bytes(ROW * 3)

    def change(event: dict[str, object]) -> None:
        with Path("a.jsonl").open("ab") as file:
            file.write(OTHER)

    with pytest.raises(UserError, match="changed while it was read"):
        check_data("a.jsonl", subscribers=[change])


def test_without_a_readable_row_each_row_is_named() -> None:
    Path("a.jsonl").write_bytes(b"{\n[]\n")
    assert malformed(check_data("a.jsonl")) == [1, 2]


EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".jsonl.gz", ".csv.gz")


@pytest.mark.long
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_any_bytes_are_checked_or_refused_in_one_line(extension: str, tmp_path: Path) -> None:
    @settings(max_examples=25, deadline=None)
    @given(st.binary(max_size=200), st.integers(0, 60), st.booleans())
    def any_bytes(noise: bytes, at: int, packed: bool) -> None:
        content = ROW[:at] + noise + ROW[at:] + OTHER
        Path(f"a{extension}").write_bytes(gzip.compress(content)[: -at or None] if packed else content)
        with suppress(UserError):  # no row can be read, or there is none
            checks = check_data(f"a{extension}", cache=False)
            assert checks.rows >= len(malformed(checks))

    any_bytes()
