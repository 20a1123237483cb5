"""Broken files: never a traceback, always a named row, and the other rows are checked all the same."""

import gzip
import json
import os
from contextlib import suppress
from pathlib import Path
from threading import Thread
from time import sleep

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


@pytest.mark.parametrize(("name", "content"), [("a.json", ""), ("a.csv", ""), ("a.csv", "question,answer\n")])
def test_a_file_without_rows_is_checked(name: str, content: str) -> None:
    Path(name).write_text(content)
    checks = check_data(name)
    assert (checks.rows, [each.name for each in checks.results if each.count]) == (0, [])


def test_a_pipe_is_refused_because_it_would_never_end() -> None:
    Path("rows").mkdir()
    os.mkfifo("rows/a.jsonl")
    for path in ("rows", "rows/a.jsonl"):
        with pytest.raises(UserError, match=r"^rows/a.jsonl is a pipe.* Save it as a file\.$"):
            check_data(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param(b"[" * 100_000 + b"\n", "nested more than 200 levels deep", id="deep"),
        pytest.param(b'{"question": ' + b"9" * 5000 + b"}\n", "a number of more than 4,300 digits", id="a long number"),
    ],
)
def test_what_python_refuses_to_read_is_said_in_words(line: bytes, reason: str) -> None:
    Path("a.jsonl").write_bytes(ROW + line)
    assert check_data("a.jsonl")["malformed"].first(1)[0].detail == reason
    Path("a.json").write_bytes(b"[" + line + b"]")
    assert reason in check_data("a.json")["malformed"].first(1)[0].detail


def test_two_checks_of_the_same_rows_at_once_find_what_one_finds() -> None:
    rows = [json.dumps({"question": f"What is {n}?", "answer": f"It is {n}."}) for n in range(200)]
    Path("a.jsonl").write_text("\n".join(rows))
    found: list[DataChecks] = []
    others: list[Thread] = []

    def check_too(event: dict[str, object]) -> None:
        if not others:
            others.append(Thread(target=lambda: found.append(check_data("a.jsonl", subscribers=[waited.append]))))
            others[0].start()
            while not waited:
                sleep(0.01)

    waited: list[dict[str, object]] = []
    found.append(check_data("a.jsonl", subscribers=[check_too]))
    others[0].join()
    assert waited[0]["what"] == "waiting for the same check"
    assert [(each.rows, each.cached, each["exact_duplicates"].count) for each in found] == [
        (200, False, 0),
        (200, True, 0),
    ]


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
