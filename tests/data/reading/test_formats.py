"""Files of each format, written by the ecosystem's own writers, as rows."""

import sqlite3
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Malformed
from tunesmith.data.read import Row, fingerprint, read
from tunesmith.data.reading.paired import partner_of
from tunesmith.errors import UserError

ROWS = [{"question": f"Wie heißt {n}?", "answer": f"Zeile {n}"} for n in range(1, 4)]
CSV = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS)

PAGE = """<!doctype html><html><head><title>T</title><script>var x = 1;</script></head><body>
<nav>Home | About us</nav><main><h1>Prices</h1><p>All prices are net.</p>
<table><tr><th>Plan<th>Price</tr><tr><td>Team<td>20</table><pre>GET /plans</pre></main><footer>Imprint</footer>"""


def rows_of(directory: Path, *paths: str) -> list[Any]:
    """The values of each row, or why it is malformed."""
    return [row.reason if isinstance(row, Malformed) else row.values for row in read(paths, directory)]


def zstd(content: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd as module
    else:
        module = pytest.importorskip("backports.zstd")
    packed: bytes = module.compress(content)
    return packed


def test_zstd_is_read_in_any_number_of_frames_and_a_truncated_one_is_named(tmp_path: Path) -> None:
    lines = CSV.encode().splitlines(keepends=True)
    (tmp_path / "rows.csv.zst").write_bytes(zstd(b"".join(lines[:2])) + zstd(b"".join(lines[2:])))
    assert rows_of(tmp_path, "rows.csv.zst") == ROWS
    (tmp_path / "cut.csv.zst").write_bytes(zstd(CSV.encode() * 1000)[:-9])
    with pytest.raises(UserError, match=r"cut\.csv\.zst is truncated or is not zstd"):
        rows_of(tmp_path, "cut.csv.zst")


# Documents


def test_a_web_page_is_markdown_and_what_surrounds_its_text_is_counted(tmp_path: Path) -> None:
    (tmp_path / "prices.html").write_text(PAGE)
    (row,) = read(["prices.html"], tmp_path)
    assert isinstance(row, Row)
    assert row.values == (
        "# Prices\n\nAll prices are net.\n\n| Plan | Price |\n|---|---|\n| Team | 20 |\n\n```\nGET /plans\n```\n"
    )
    assert row.left_out == sum(map(len, ("T", "var x = 1;", "Home | About us", "Imprint")))


def test_a_pdf_is_text_under_the_headings_of_its_outline_and_one_without_text_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    from pypdf import PdfWriter

    writer = PdfWriter()
    writer.add_blank_page(300, 300)
    writer.write(tmp_path / "scan.pdf")
    with pytest.raises(UserError, match=r"scan\.pdf cannot be read: its 1 pages hold no text; recognize it first"):
        rows_of(tmp_path, "scan.pdf")
    (tmp_path / "none.pdf").write_bytes(b"%PDF-1.7\nno more")
    with pytest.raises(UserError, match=r"none\.pdf cannot be read: it is damaged"):
        rows_of(tmp_path, "none.pdf")


def test_word_is_markdown_and_a_workbook_has_rows(tmp_path: Path) -> None:
    docx, openpyxl = pytest.importorskip("docx"), pytest.importorskip("openpyxl")
    document = docx.Document()
    document.add_heading("Billing", 2)
    document.add_paragraph("Invoices are monthly.")
    document.save(str(tmp_path / "handbook.docx"))
    assert rows_of(tmp_path, "handbook.docx") == ["## Billing\n\nInvoices are monthly.\n"]
    book = openpyxl.Workbook()
    for record in (["question", "answer"], ["How many?", 3], [None, None], ["When?", "Monday"], ["Why?", None]):
        book.active.append(record)
    book.save(tmp_path / "faq.xlsx")
    assert rows_of(tmp_path, "faq.xlsx") == [
        {"question": "How many?", "answer": "3"},
        {"question": "When?", "answer": "Monday"},
        {"question": "Why?", "answer": None},
    ]
    assert [row.source.row for row in read(["faq.xlsx"], tmp_path)] == [1, 3, 4], "as records after the header"
    book.create_sheet("other").append(["something"])
    book.save(tmp_path / "two.xlsx")
    with pytest.raises(UserError, match="the sheets Sheet and other have different columns"):
        rows_of(tmp_path, "two.xlsx")


def test_parquet_values_that_python_has_no_type_for_are_texts(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "at": pyarrow.array([1, 2**62], pyarrow.timestamp("ns")),
            "price": [Decimal("1.50"), Decimal("2.25")],
            "day": pyarrow.array([0, 10_000_000], pyarrow.date32()),
            "lasts": pyarrow.array([1, None], pyarrow.duration("s")),
            "kind": pyarrow.array(["a", "b"]).dictionary_encode(),
            "map": pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "nothing": pyarrow.nulls(2),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    first, second = rows_of(tmp_path, "rows.parquet")
    assert (first["at"], first["price"], first["day"]) == ("1970-01-01 00:00:00.000000001", "1.50", "1970-01-01")
    assert (first["lasts"], first["kind"], first["map"], first["nothing"]) == (1, "a", [("k", 1)], None)
    assert second["day"].startswith("2"), "a year that Python's dates do not have"
    double = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(double, tmp_path / "double.parquet")
    with pytest.raises(UserError, match="two columns named 'a'"):
        rows_of(tmp_path, "double.parquet")


# Lines that belong together


def test_lines_of_files_in_braces_are_rows_and_columns_are_what_differs(tmp_path: Path) -> None:
    (tmp_path / "dev.de.txt").write_bytes("Größe\r\n\nzwei\n".encode())
    (tmp_path / "dev.en.txt").write_bytes(b"size\n\ntwo")
    rows = list(read(["dev.{de,en}.txt"], tmp_path))
    assert [(str(row.source), row.values) for row in rows if isinstance(row, Row)] == [
        ("dev.{de,en}.txt row 1", {"de": "Größe", "en": "size"}),
        ("dev.{de,en}.txt row 3", {"de": "zwei", "en": "two"}),
    ]
    before = fingerprint(["dev.{de,en}.txt"], tmp_path)
    (tmp_path / "dev.en.txt").write_bytes(b"size\n")
    assert fingerprint(["dev.{de,en}.txt"], tmp_path) != before
    with pytest.raises(UserError, match=r"dev\.en\.txt ends after line 1 and another one does not"):
        rows_of(tmp_path, "dev.{de,en}.txt")


def test_a_file_beside_with_as_many_lines_is_found(tmp_path: Path) -> None:
    for name, lines in (("dev.de.txt", 3), ("dev.en.txt", 3), ("test.en.txt", 3), ("dev.fr.txt", 4)):
        (tmp_path / name).write_text("line\n" * lines)
    assert partner_of(tmp_path / "dev.de.txt") == str(tmp_path / "dev.{de,en}.txt")
    assert partner_of(tmp_path / "dev.fr.txt") is None


# Queries


@pytest.fixture
def database(tmp_path: Path) -> str:
    pytest.importorskip("sqlalchemy")
    with sqlite3.connect(tmp_path / "faq.db") as connection:
        connection.execute("CREATE TABLE faq (question TEXT, answer TEXT, n INTEGER, raw BLOB)")
        connection.executemany(
            "INSERT INTO faq VALUES (?, ?, 1, x'00ff')", [(row["question"], row["answer"]) for row in ROWS]
        )
    connection.close()
    return "sqlite:///faq.db"


def test_a_query_and_a_table_give_rows(database: str, tmp_path: Path) -> None:
    query = f"{database}#SELECT question, answer FROM faq WHERE question LIKE '%?' AND 'a:b' = 'a:b' ORDER BY question"
    assert rows_of(tmp_path, query) == ROWS
    assert rows_of(tmp_path, f"{database}#faq")[0] == {**ROWS[0], "n": 1, "raw": "00ff"}
    assert str(next(read([f"{database}#faq"], tmp_path)).source) == "sqlite:///faq.db#SELECT * FROM faq row 1"
    before = fingerprint([query], tmp_path)
    with sqlite3.connect(tmp_path / "faq.db") as connection:
        connection.execute("UPDATE faq SET n = 2")
    assert fingerprint([query], tmp_path) == before, "what the query does not read may change"
    with sqlite3.connect(tmp_path / "faq.db") as connection:
        connection.execute("UPDATE faq SET answer = 'other'")
    assert fingerprint([query], tmp_path) != before


def test_a_database_is_looked_up_beside_the_recipe(database: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"data:\n  train: {database}#SELECT question, answer FROM faq\n")
    (path,) = Recipe.load(tmp_path / "recipe.yaml").data.train
    assert path == f"sqlite:///{tmp_path / 'faq.db'}#SELECT question, answer FROM faq"
    assert len(rows_of(Path("/"), path)) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sqlite:///faq.db", r"has no query. Write sqlite:///faq.db#SELECT … or #TABLE"),
        ("sqlite:///faq.db#DROP TABLE faq", r"only queries that read are run, and this one begins 'DROP TABLE faq'"),
        ("sqlite:///none.db#faq", r"there is no file none.db, and none is made"),
        ("sqlite:///faq.db#SELECT gone FROM faq", r"cannot be read: no such column: gone"),
        ("sqlite:///faq.db#SELECT n, n FROM faq", r"two columns are named 'n'. Name them with AS"),
        ("postgresql://me:geheim@host/db#t", r"postgresql://me:\*\*\*@host/db has a password in clear"),
        ("postgresql://me:${NO_SUCH}@host/db#t", r"environment variable NO_SUCH, which is not set"),
        ("oracle+nodriver://host/db#t", r"oracle\+nodriver|driver"),
    ],
)
def test_what_is_wrong_with_a_query_is_said_in_one_line_without_secrets(
    given: str, message: str, database: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        rows_of(tmp_path, given)
    assert "geheim" not in str(caught.value)
    assert not (tmp_path / "none.db").exists()


# Elsewhere


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_of_a_web_server_are_streamed_and_secrets_are_not_shown(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert rows_of(tmp_path, f"{site}/rows.csv.gz") == ROWS
    assert rows_of(tmp_path, f"{site}/rows.parquet") == ROWS
    monkeypatch.setenv("TOKEN", "geheim")
    first = next(read([f"{site}/rows.csv.gz?a=public&token=${{TOKEN}}"], tmp_path))
    assert first.source.file == f"{site}/rows.csv.gz?a=***&token=${{TOKEN}}"
    prints = fingerprint([f"{site}/rows.csv.gz?token=${{TOKEN}}"], tmp_path)
    assert "geheim" not in str(prints)
    with pytest.raises(UserError, match=r"none\.csv\?key=\*\*\*: there is no such file") as caught:
        rows_of(tmp_path, f"{site}/none.csv?key=geheim")
    assert "geheim" not in str(caught.value)
    with pytest.raises(UserError, match="has a password in clear"):
        rows_of(tmp_path, "https://me:geheim@example.org/a.csv")


def test_other_storages_of_fsspec_are_read_and_a_pattern_names_several_files(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for number, row in enumerate(ROWS):
        memory.pipe(f"/bucket/{number}.csv", f"question,answer\n{row['question']},{row['answer']}\n".encode())
    assert rows_of(tmp_path, "memory://bucket/*.csv") == ROWS
    before = fingerprint(["memory://bucket/*.csv"], tmp_path)
    assert len(before) == 3
    memory.pipe("/bucket/1.csv", b"question,answer\na,b\n")
    after = fingerprint(["memory://bucket/*.csv"], tmp_path)
    assert [before[name] == after[name] for name in before] == [True, False, True]
    with pytest.raises(UserError, match="no file matches this pattern"):
        rows_of(tmp_path, "memory://bucket/*.tsv")


@pytest.mark.parametrize(
    ("given", "missing", "message"),
    [
        ("s3://bucket/a.csv", "s3fs", r'pip install "tunesmith\[s3\]"'),
        ("sqlite:///a.db#t", "sqlalchemy", r'pip install "tunesmith\[sql\]"'),
        ("https://example.org/a.csv", "fsspec", r'pip install "tunesmith\[remote\]"'),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(
    given: str, missing: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path, given)


def test_bytes_of_a_stream_are_never_more_than_asked_for() -> None:
    from tunesmith.data.reading.pieces import PIECE, pieces

    stream = BytesIO(b"x" * (PIECE * 30))
    assert max(map(len, pieces(stream))) <= 2 * PIECE
