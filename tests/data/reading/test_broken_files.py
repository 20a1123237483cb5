"""Broken files: never a traceback, never a hang, memory bounded, always a named file or row."""

import gzip
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.documents import office
from tunesmith.data.example import Malformed
from tunesmith.data.read import Row, read
from tunesmith.data.reading import json_lines
from tunesmith.errors import UserError

GOOD = b'{"question": "q", "answer": "a"}\n'


def outcome(directory: Path, name: str) -> list[Any]:
    """Each row's number, with why it is malformed or None."""
    return [(row.source.row, row.reason if isinstance(row, Malformed) else None) for row in read([name], directory)]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.json.gz", "text.txt.gz", "rows.parquet.gz"])
def test_a_truncated_gzip_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(os.urandom(40_000).hex().encode())[:-20_000])
    with pytest.raises(UserError, match=rf"^{name} (is truncated or is not gzip|cannot be read)"):
        outcome(tmp_path, name)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json", "text.txt", "page.html"])
@pytest.mark.parametrize("content", ["a,b\n1,2\n".encode("utf-16"), b"a\0b\n\0", "a,b\n".encode("utf-16-le")])
def test_utf_16_and_binary_are_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{name} (is in UTF-16|holds NUL bytes|cannot be read)"):
        outcome(tmp_path, name)


def test_a_nul_byte_far_into_a_file_makes_its_row_malformed(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"q,a\n" + b"1,2\n" * 4000 + b"1,\0\n1,2\n")
    rows = outcome(tmp_path, "rows.csv")
    assert [row for row in rows if row[1]] == [(4001, "holds a NUL byte, which is no text")]
    assert len(rows) == 4002
    (tmp_path / "text.txt").write_bytes(b"word " * 4000 + b"\0")
    assert outcome(tmp_path, "text.txt") == [(1, "holds a NUL byte at byte 20,000, which is no text")]


@pytest.mark.parametrize("levels", [150, 250, 5_000, 200_000])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_deep_json_is_malformed_or_refused_by_name(name: str, levels: int, tmp_path: Path) -> None:
    deep = '{"question": "q", "answer": ' + "[" * levels + "]" * levels + "}"
    (tmp_path / name).write_text(deep if name.endswith("l") else f"[{deep}]")
    try:
        ((row, reason),) = outcome(tmp_path, name)
    except UserError as error:
        assert str(error).startswith("rows.json is nested more than 200 levels deep")  # noqa: PT017
        return
    assert row == 1
    assert (reason is None) == (levels == 150)


def test_a_line_over_the_limit_is_malformed_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "LONGEST", 1000)
    (tmp_path / "rows.jsonl").write_bytes(GOOD + b'{"a": "' + b"x" * 5_000_000 + b'"}\n' + GOOD + b"\xff\n")
    rows = outcome(tmp_path, "rows.jsonl")
    assert [number for number, reason in rows if reason] == [2, 4]
    assert rows[1][1].startswith("a line of more than")
    assert f"at byte {2 * len(GOOD) + 5_000_000 + 10:,}" in rows[3][1], "positions are of the file"


def test_a_file_that_changes_while_it_is_read_is_named_with_the_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD * 3)
    rows = read(["rows.jsonl"], tmp_path)
    next(rows)
    with file.open("ab") as more:
        more.write(GOOD)
    with pytest.raises(UserError, match=r"rows\.jsonl changed while it was read \(up to row \d\)"):
        list(rows)


@pytest.mark.parametrize("name", ["bomb.docx", "bomb.pptx", "bomb.xlsx"])
def test_a_zip_bomb_in_an_office_file_is_refused_without_unpacking_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(office, "LARGEST_UNPACKED", 40_000_000)
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: pytest.fail("it is unpacked"))
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("word/document.xml", b"\0" * 50_000_000)
    assert (tmp_path / name).stat().st_size < 500_000
    with pytest.raises(UserError, match=rf"^{name} cannot be read: it unpacks to 50 MB, and at most 40 are read"):
        outcome(tmp_path, name)


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("docx")
    import docx

    docx.Document().save(str(tmp_path / "a.docx"))
    data = bytearray((tmp_path / "a.docx").read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1).to_bytes(4, "little")
    (tmp_path / "a.docx").write_bytes(data)
    try:
        outcome(tmp_path, "a.docx")
    except UserError as error:
        assert str(error).startswith("a.docx ")  # noqa: PT017


def test_a_circle_of_directories_ends(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "rows.jsonl").write_bytes(GOOD)
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "itself").symlink_to(tmp_path / "a" / "itself")
    assert outcome(tmp_path, "a") == [(1, None)]


NAMES = ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.txt", "x.html", "x.parquet", "x.pdf", "x.docx", "x.xlsx", "x.csv.gz"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(NAMES),
    content=st.one_of(
        st.binary(max_size=200),
        st.text(alphabet='{}[]",:\\ud83a\n\r\t<>/pre0', max_size=120).map(lambda text: text.encode()),
        st.lists(st.sampled_from([GOOD, b'"', b"a,b\n", b"\xef\xbb\xbf", b"%PDF-", b"PK\x03\x04", b"<table>"])).map(
            b"".join
        ),
    ),
)
def test_any_content_gives_rows_or_one_line_that_names_the_file(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    try:
        for row in read([name], tmp_path):
            assert row.source.file == name
            if isinstance(row, Row):
                json.dumps(row.values, ensure_ascii=False, default=str).encode("utf-8")
    except UserError as error:
        assert str(error).startswith(name)  # noqa: PT017
