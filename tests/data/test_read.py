"""Rows from data files, each with its file and row number."""

import csv
import gzip
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.example import Malformed
from tunesmith.data.read import Row, fingerprint, read
from tunesmith.data.reading.pieces import WHOLE, pieces
from tunesmith.errors import UserError

ROWS = [{"question": f"Wie heißt {n}?", "answer": f"Zeile {n},\nzweite"} for n in range(1, 4)]


def rows_of(directory: Path, *paths: str) -> list[Any]:
    """(row number, values), or (row number, reason) for a malformed one."""
    rows = list(read(paths, directory))
    return [(row.source.row, row.reason if isinstance(row, Malformed) else row.values) for row in rows]


def as_csv(delimiter: str, rows: Sequence[dict[str, str]] = ROWS) -> str:
    import io

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


FILES = {
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "rows.ndjson": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "rows.json": json.dumps(ROWS, indent=2),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}),
    "rows.csv": as_csv(","),
    "semicolons.csv": as_csv(";"),
    "rows.tsv": as_csv("\t"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("is_gzip", [False, True], ids=["", "gz"])
def test_every_file_type_gives_its_rows_with_their_numbers(
    name: str, mark: bytes, is_gzip: bool, tmp_path: Path
) -> None:
    content = mark + FILES[name].encode()
    name += ".gz" * is_gzip
    (tmp_path / name).write_bytes(gzip.compress(content) if is_gzip else content)
    assert rows_of(tmp_path, name) == [(number, row) for number, row in enumerate(ROWS, 1)]


def test_parquet_is_read_back_row_by_row(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": str(n)}], "note": None} for n in range(700)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert rows_of(tmp_path, "rows.parquet") == [(number, row) for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 11 of the file"),
        (b"[1, 2]", "a list, not an object"),
        (b"17", "a number, not an object"),
        (rb'{"a": "\ud83d"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_malformed_and_reading_continues(line: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n\n" + line + b'\n{"a": "\\ud83d\\ude00"}\n')
    first, bad, last = rows_of(tmp_path, "rows.jsonl")
    assert first == (1, {})
    assert bad[0] == 3
    assert reason in bad[1]
    assert last == (4, {"a": "😀"})


def test_csv_rows_with_too_many_fields_or_unclosed_quotes_are_malformed(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('q,a\n1,2\n1,2,3\n"x\ny",4\n5,"open', encoding="utf-8")
    good, ragged, quoted, open_ = rows_of(tmp_path, "rows.csv")
    assert (good, quoted) == ((1, {"q": "1", "a": "2"}), (3, {"q": "x\ny", "a": "4"}))
    assert ragged == (2, "3 fields, but the header names 2 (q, a)")
    assert "never closed" in open_[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", b'[{"a": 1}, {"a"', r"rows.json is not valid JSON: .* at line 1"),
        ("rows.json", b'{"q": ["a", "b"], "a": ["c", "d"]}', r"holds columns \(q, a\)"),
        ("rows.jsonl", b'[{"a": 1},\n', r"begins as a JSON list.*Rename it to .json"),
        ("rows.jsonl", b"", r"rows.jsonl holds no rows"),
        ("rows.jsonl", "é".encode("utf-16"), r"is in UTF-16. Save it as UTF-8"),
        ("rows.csv", b"a,a\n1,2\n", r"names column 'a' twice"),
        ("rows.parquet", b"PAR1 no", r"cannot be read as Parquet"),
        ("rows.jsonl.gz", b"no gzip", r"is truncated or is not gzip"),
        ("rows.xls", b"x", r"'.xls' is not a known extension.*Save the sheet as CSV"),
        ("rows.xlsx", b"x", r"rows.xlsx cannot be read: it is damaged or encrypted"),
        ("rows.jsonl.zst", b"no zstd", r"is truncated or is not zstd"),
        ("rows.csv", b"a,b\n1,\0\n", r"rows.csv holds NUL bytes"),
        ("directory/x.bin", b"x", None),
    ],
)
def test_an_unreadable_file_is_refused_in_one_line(
    name: str, content: bytes, message: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message or "holds no file with a known extension"):
        rows_of(tmp_path, name.split("/")[0])


def test_a_misspelled_path_gets_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"question.jsonl: no such file or directory. Did you mean questions.jsonl\?"):
        rows_of(tmp_path, "question.jsonl")


def test_directories_and_globs_are_read_in_order_and_no_file_twice(tmp_path: Path) -> None:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    for number, name in enumerate(["in/b.jsonl", "in/a.jsonl", "in/deeper/c.jsonl", "in/.hidden.jsonl"]):
        (tmp_path / name).write_text(json.dumps({"n": number}) + "\n")
    assert [values["n"] for _, values in rows_of(tmp_path, "in")] == [1, 0, 2]
    assert [values["n"] for _, values in rows_of(tmp_path, "in/*.jsonl")] == [1, 0]
    with pytest.raises(UserError, match="named twice"):
        rows_of(tmp_path, "in", "in/a.jsonl")
    with pytest.raises(UserError, match="no file matches this pattern"):
        rows_of(tmp_path, "in/*.csv")
    (tmp_path / "in" / "notes.txt").write_text("text")
    with pytest.raises(UserError, match=r"holds both rows .* and documents"):
        rows_of(tmp_path, "in")


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("One.\n\nTwo.\n", encoding="utf-8")
    assert [row.values for row in read(["book.txt"], tmp_path) if isinstance(row, Row)] == ["One.\n\nTwo.\n"]


@settings(max_examples=30)
@given(
    parts=st.lists(
        st.sampled_from(["é" * 997, "word " * 5000, "\n\n", "line\n" * 9000, "x" * 30_000]), min_size=1, max_size=12
    )
)
def test_long_texts_are_split_between_characters_without_loss(parts: list[str]) -> None:
    content = ("".join(parts) * 12).encode()
    found = list(pieces(BytesIO(content)))
    assert b"".join(found) == content
    for piece in found:
        piece.decode("utf-8")
    assert max(map(len, found)) <= 2 * WHOLE, "no more than that is in memory at a time"


def test_fingerprints_change_only_with_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n')
    before = fingerprint(["rows.jsonl"], tmp_path)
    file.touch()
    assert fingerprint(["rows.jsonl"], tmp_path) == before
    file.write_text('{"a": 2}\n')
    assert fingerprint(["rows.jsonl"], tmp_path) != before


def test_an_unreachable_hub_data_set_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"hf://someone/rows@train cannot be read from the hub"):
        rows_of(tmp_path, "hf://someone/rows")
