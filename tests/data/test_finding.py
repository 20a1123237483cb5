"""Finding data files from paths, globs and hub data sets, and the rows in them."""

import gzip
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from pyarrow import Table, parquet

from tunesmith.data import read
from tunesmith.data.example import Malformed
from tunesmith.data.files import DataFile, find
from tunesmith.data.hub import HubDataSet, commit, stream
from tunesmith.data.read import Row, fingerprint
from tunesmith.data.reading import parquet as read_parquet_module
from tunesmith.data.reading.json_rows import rows_of
from tunesmith.errors import UserError


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("{}\n")


def refused(given: str | list[str], directory: Path) -> str:
    with pytest.raises(UserError) as error:
        find([given] if isinstance(given, str) else given, directory)
    return str(error.value)


# Files


EXTENSIONS = (
    ".json, .jsonl, .ndjson, .csv, .tsv, .parquet, .xlsx, .txt, .md, .markdown, .html, .htm, .xhtml, .pdf, .docx, .pptx"
)


def test_a_file_keeps_its_given_name_and_is_shown_relative_to_the_base(tmp_path: Path) -> None:
    base, elsewhere = tmp_path / "base", tmp_path / "elsewhere"
    touch(base, "in/a.JSONL", "b.csv.gz")
    touch(elsewhere, "c.tsv")
    files = find(["in", "./b.csv.gz", str(base / "in/../in/a.JSONL")][:2], base)
    assert files == [
        DataFile(base / "in/a.JSONL", "in/a.JSONL", "in/a.JSONL", False),
        DataFile(base / "b.csv.gz", "b.csv.gz", "b.csv.gz", True),
    ]
    assert [(file.extension, file.compression) for file in files if isinstance(file, DataFile)] == [
        (".jsonl", None),
        (".csv", "gzip"),
    ]
    (absolute, outside) = find([str(base / "in/a.JSONL"), "../elsewhere/c.tsv"], base)
    assert absolute == DataFile(base / "in/a.JSONL", str(base / "in/a.JSONL"), "in/a.JSONL", True)
    assert isinstance(outside, DataFile)
    assert outside.name == "../elsewhere/c.tsv"
    (far,) = find([str(elsewhere / "c.tsv")], base)
    assert far == DataFile(elsewhere / "c.tsv", str(elsewhere / "c.tsv"), str(elsewhere / "c.tsv"), True)


def test_directories_are_searched_recursively_in_order_without_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path, "d/z.json", "d/b/y.csv", "d/a/x.tsv", "d/.h/w.csv", "d/.v.csv", "d/u.bin", "d/a/t.parquet.gz")
    names = [each.name for each in find(["d"], tmp_path) if isinstance(each, DataFile)]
    assert names == ["d/z.json", "d/a/t.parquet.gz", "d/a/x.tsv", "d/b/y.csv"]
    assert all(not each.is_named for each in find(["d"], tmp_path) if isinstance(each, DataFile))
    names = [each.name for each in find(["d/**/*.[ct]sv"], tmp_path) if isinstance(each, DataFile)]
    assert names == ["d/a/x.tsv", "d/b/y.csv"]
    assert not any(each.is_named for each in find(["d/*/*.csv"], tmp_path) if isinstance(each, DataFile))


def test_links_to_directories_are_followed_once_and_never_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path, "d/a.csv", "elsewhere/b.csv", "elsewhere/deep/c.csv", "shared/e.csv")
    links = {"d/more": "elsewhere", "d/up": "d", "elsewhere/back": "d", "elsewhere/deep/top": "", "d/.hidden": "shared"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    names = [each.name for each in find(["d"], tmp_path) if isinstance(each, DataFile)]
    assert names == ["d/a.csv", "d/more/b.csv", "d/more/deep/c.csv"]
    (tmp_path / "d/again").symlink_to(tmp_path / "elsewhere")
    assert refused("d", tmp_path).startswith("d/more/b.csv is named twice among the data (also as d/again/b.csv)")


def test_a_directory_with_both_rows_and_documents_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "d/a.csv", "d/b.csv", "d/c.json", "d/e.md")
    assert refused("d/", tmp_path) == (
        "d/ holds both rows (a.csv and 2 more) and documents (e.md). Name the ones you mean, for example d/**/*.csv."
    )
    touch(tmp_path, "texts/a.txt", "texts/b.md.gz")
    assert len(find(["texts"], tmp_path)) == 2
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "empty/a.bin")
    assert refused("empty", tmp_path) == (
        f"empty holds no file with a known extension ({EXTENSIONS}; each also with .gz or .zst)."
    )


JSON_LINES = "It looks like JSON with one object per line: name it .jsonl."
KNOWN = f"Known: {EXTENSIONS}, each also with .gz or .zst."


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.xls", f"a.xls: '.xls' is not a known extension. {KNOWN} Save the sheet as CSV (UTF-8) or .xlsx."),
        ("a.DOC", f"a.DOC: '.doc' is not a known extension. {KNOWN} Save it as .docx."),
        ("a.csv.zip", f"a.csv.zip: '.zip' is not a known extension. {KNOWN} Unpack it first."),
        (
            "a.dat",
            f"a.dat: '.dat' is not a known extension. {KNOWN} {JSON_LINES}",
        ),
        ("a", f"a: it has no extension. {KNOWN} {JSON_LINES}"),
        ("a.gz", f"a.gz: it has no extension. {KNOWN} {JSON_LINES}"),
    ],
)
def test_a_file_of_an_unknown_type_is_refused_with_advice(name: str, message: str, tmp_path: Path) -> None:
    touch(tmp_path, name)
    assert refused(name, tmp_path) == message


def test_a_missing_path_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    touch(tmp_path, "data/rows.jsonl", "data/other.csv")
    assert refused("data/row.jsonl", tmp_path) == (
        "data/row.jsonl: no such file or directory. Did you mean data/rows.jsonl?"
    )
    assert refused("dat/rows.jsonl", tmp_path) == "dat/rows.jsonl: no such file or directory. Did you mean data?"
    assert refused("data/wwwwwww.md", tmp_path) == (
        f"data/wwwwwww.md: no such file or directory. Looked for wwwwwww.md in {tmp_path}/data; a hub data set is "
        "hf://owner/name."
    )
    assert refused("data/*.tsv", tmp_path) == "data/*.tsv: no file matches this pattern. data is there."
    assert refused("dta/*.tsv", tmp_path) == "dta/*.tsv: no file matches this pattern. Did you mean data?"
    assert refused("nowhere://example.org/a.csv", tmp_path) == (
        "nowhere://example.org/a.csv: nowhere:// is not known. Known are s3://, gs://, https:// and others of fsspec, "
        "databases as sqlite:///file.db#SELECT …, and hf://owner/name for a hub data set."
    )


def test_a_file_or_data_set_named_twice_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    message = "is named twice among the data (also as {}), so its rows would be trained on twice"
    assert refused(["a.csv", "./a.csv"], tmp_path).startswith("a.csv " + message.format("a.csv"))
    assert refused(["a.csv", "link.csv"], tmp_path).startswith("link.csv " + message.format("a.csv"))
    same = "hf://owner/name@train"
    assert refused(["owner/name", "hf://owner/name"], tmp_path).startswith(f"{same} " + message.format(same))


@pytest.mark.parametrize(
    ("given", "on_hub"),
    [
        ("owner/name", True),
        ("owner/name:config@test", True),
        ("./name", False),
        (".owner/name", False),
        ("owner/name.csv", False),
        ("owner/name/more", False),
        ("here/name", False),
        ("name", False),
        ("owner/na me", False),
    ],
)
def test_owner_slash_name_is_a_hub_data_set_unless_it_looks_like_a_path(
    given: str, on_hub: bool, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    if on_hub:
        assert find([given], tmp_path) == [HubDataSet.parse(given)]
    else:
        assert "no such file or directory" in refused(given, tmp_path)


# Data sets on the hub


@pytest.mark.parametrize(
    ("given", "parts", "shown"),
    [
        ("hf://owner/name", ("owner/name", None, "train"), "hf://owner/name@train"),
        ("owner/name:de", ("owner/name", "de", "train"), "hf://owner/name:de@train"),
        ("hf://name@test[:10%]", ("name", None, "test[:10%]"), "hf://name@test[:10%]"),
        ("hf://o-w.n/na_me:c:d@v", ("o-w.n/na_me", "c:d", "v"), "hf://o-w.n/na_me:c:d@v"),
    ],
)
def test_a_hub_data_set_has_a_repository_a_config_and_a_split(given: str, parts: Any, shown: str) -> None:
    data_set = HubDataSet.parse(given)
    assert (data_set.repository, data_set.config, data_set.split) == parts
    assert str(data_set) == shown
    with pytest.raises(UserError, match=r"^hf://a/b/c does not name a hub data set\. Write hf://owner/name"):
        HubDataSet.parse("hf://a/b/c")


class Hub:
    """The method of the hub client that is called, without a network."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def dataset_info(self, repository: str) -> Any:
        if self.error is not None:
            raise self.error
        return SimpleNamespace(sha=f"head of {repository}")


def test_a_data_set_is_streamed_at_its_current_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load(*args: Any, **options: Any) -> list[dict[str, int]]:
        calls.append((args, options))
        return [{"n": 1}, {"n": 2}]

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr("datasets.load_dataset", load)
    assert fingerprint(["owner/name:de@test"], tmp_path) == {"hf://owner/name:de@test": "commit:head of owner/name"}
    rows = list(read.read(["owner/name:de@test"], tmp_path))
    assert [(str(each.source), each.values) for each in rows if isinstance(each, Row)] == [
        ("hf://owner/name:de@test row 1", {"n": 1}),
        ("hf://owner/name:de@test row 2", {"n": 2}),
    ]
    options = {"split": "test", "streaming": True, "revision": "head of owner/name"}
    assert calls == [(("owner/name", "de"), options)]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [])
    with pytest.raises(UserError, match=r"^hf://owner/name@train holds no rows\. Name a file that does\.$"):
        list(read.read(["owner/name"], tmp_path))


def test_a_data_set_that_cannot_be_read_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = HubDataSet("owner/name", None, "train")
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    for error, message in (
        (
            RepositoryNotFoundError("no", response=response),
            "neither a local path nor a data set on the hub that you may",
        ),  # type: ignore[arg-type]
        (OSError("first\nsecond"), "cannot be read from the hub: first Check the name, config"),
        (KeyError(), "cannot be read from the hub: KeyError Check the name"),
    ):
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda error=error: Hub(error))
        with pytest.raises(UserError, match=f"hf://owner/name@train:? {message}"):
            commit(data_set)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)

    def load(*_: Any, **__: Any) -> Any:
        raise ValueError("Unknown split")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(UserError, match="hf://owner/name@train cannot be read from the hub: Unknown split Check"):
        list(stream(data_set))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="is read through `datasets`, which is not installed"):
        list(stream(data_set))


# Rows in a JSON file

TURN, SHARED = {"role": "user", "content": "a"}, {"from": "gpt", "value": "a"}


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        pytest.param([1, {"a": 1}], [1, {"a": 1}], id="a list is the rows"),
        pytest.param({"v": 1, "data": [{"a": 1}], "more": [1, 2]}, [{"a": 1}], id="the only list of objects"),
        pytest.param({"x": {"a": 1}, "y": {"a": 2}}, [{"a": 1}, {"a": 2}], id="objects by their ids"),
        pytest.param({"x": {"a": 1}}, [{"x": {"a": 1}}], id="a single inner object belongs to the row"),
        pytest.param({"a": 1, "b": "x"}, [{"a": 1, "b": "x"}], id="a single row"),
        pytest.param({"messages": [TURN, TURN]}, [{"messages": [TURN, TURN]}], id="a chat is a row"),
        pytest.param({"conversations": [SHARED]}, [{"conversations": [SHARED]}], id="a ShareGPT chat is a row"),
        pytest.param(
            {"a": [{"x": 1}], "b": [{"x": 1}]}, [{"a": [{"x": 1}], "b": [{"x": 1}]}], id="two lists of objects"
        ),
        pytest.param({"a": [1, 2], "b": [3]}, [{"a": [1, 2], "b": [3]}], id="lists of different lengths are one row"),
        pytest.param({"a": [1, 2], "b": 3}, [{"a": [1, 2], "b": 3}], id="a list beside a scalar is one row"),
        pytest.param({"data": []}, [{"data": []}], id="an empty list"),
        pytest.param({}, [], id="nothing"),
    ],
)
def test_rows_are_found_in_the_layouts_that_exporters_write(value: Any, rows: list[Any]) -> None:
    assert rows_of(value, "a.json") == rows


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"q": [1, 2], "a": [3, 4]}, r"^a.json holds columns \(q, a\), each with all its values, not rows"),
        ({"q": [1], "a": ["x"]}, r"^a.json holds columns \(q, a\)"),
        ({"q": {"0": 1, "1": 2}, "a": {"0": 3, "1": 4}}, r"^a.json holds columns \(q, a\)"),
        ("text", r"^a.json holds a single str, not rows\. Write a list of objects\."),
        (3, r"^a.json holds a single int, not rows"),
    ],
)
def test_columns_and_single_values_are_not_rows(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows_of(value, "a.json")


# Reading the files


def rows_in(directory: Path, name: str, content: bytes) -> list[Any]:
    (directory / name).write_bytes(content)
    return [each.reason if isinstance(each, Malformed) else each.values for each in read.read([name], directory)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'"text"', "a.json holds a single str, not rows"),
        ("a.json", b" \n", "a.json holds no rows. Name a file that does."),
        ("a.json", b"[{}, {]", "a.json is not valid JSON: Expecting property name enclosed in double quotes at line 1, "
            "character 7. Fix it there; if the file is truncated, copy it again."),
        ("a.json", b"[1] [2]", "a.json is not valid JSON: Extra data at line 1, character 5"),
        ("a.json", b"[" * 100_000, "a.json is nested more than 200 levels deep. Write a list of rows with"),
        ("a.jsonl", b"\n\n", "a.jsonl holds no rows"),
        ("a.csv", b"", "a.csv holds no rows"),
        ("a.csv", b"q,a\n", "a.csv holds no rows"),
        ("a.txt", b"", "a.txt holds no rows"),
        ("a.csv", "é,b".encode("utf-16-le"), None),
        ("a.csv", b"\xfe\xff\x00q", "a.csv is in UTF-16. Save it as UTF-8."),
        ("a.csv", b"\xff\xfeq\x00", "a.csv is in UTF-16. Save it as UTF-8."),
        ("a.csv.gz", gzip.compress(b"q,a\n1,2\n" * 99, mtime=0)[:-9], "a.csv.gz is truncated or is not gzip ("),
    ],
)  # fmt: skip
def test_an_unreadable_file_is_refused_in_one_line(
    name: str, content: bytes, message: str | None, tmp_path: Path
) -> None:
    if message is None:
        assert b"\xff\xfe" not in content, "UTF-16 cannot be detected without a byte order mark"
        return
    with pytest.raises(UserError) as error:
        rows_in(tmp_path, name, content)
    assert str(error.value).startswith(message)


def test_a_file_without_read_permission_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    for reading in (lambda: list(read.read(["a.jsonl"], tmp_path)), lambda: fingerprint(["a.jsonl"], tmp_path)):
        with pytest.raises(UserError, match=r"^a\.jsonl cannot be read: Permission denied\.$"):
            reading()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{]", "not valid JSON: Expecting property name enclosed in double quotes (character 2 of the line)"),
        (b"[" * 100_000, "nested more than 200 levels deep"),
        (b"[1]", "a list, not an object with named columns"),
        (b"true", "true or false, not an object with named columns"),
        (b"null", "null, not an object with named columns"),
        (b"1.5", "a number, not an object with named columns"),
        (rb'{"a": ["\uDC00"]}', r"holds half of a surrogate pair (such as \ud83d alone), which is not a character"),
        (rb'{"a": ["\udc00"]}', r"holds half of a surrogate pair (such as \ud83d alone), which is not a character"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_value_that_is_not_a_row_is_malformed_in_jsonl_and_json(
    line: bytes, message: str, kind: str, tmp_path: Path
) -> None:
    if kind == "json" and message.startswith(("not valid", "nested")):
        return
    content = b'{"a": 1}\n' + line if kind == "jsonl" else b'[{"a": 1}, ' + line + b"]"
    first, second = rows_in(tmp_path, f"rows.{kind}", content)
    assert first == {"a": 1}
    assert second.startswith(message)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_texts_are_rows_and_surrogate_pairs_are_characters(kind: str, tmp_path: Path) -> None:
    lines = [rb'"text"', rb'{"a": "\ud83d\ude00 \\ud83d"}', rb'{"a": "\uD83D\uDE00"}']
    content = b"\n".join(lines) if kind == "jsonl" else b"[" + b",".join(lines) + b"]"
    assert rows_in(tmp_path, f"rows.{kind}", content) == ["text", {"a": "😀 \\ud83d"}, {"a": "😀"}]


def test_a_jsonl_file_is_refused_as_json_only_if_its_first_line_begins_a_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^rows\.jsonl begins as a JSON list, not with one object per line"):
        rows_in(tmp_path, "rows.jsonl", b' [{"a": 1},\n{"a": 2}]')
    assert rows_in(tmp_path, "rows.jsonl", b'{"a": 1}\n[{"a": 1},\n')[1].startswith("not valid JSON")
    assert rows_in(tmp_path, "rows.jsonl", b'[{"a": 1}]\n{"a": 1}\n')[1] == {"a": 1}


def test_empty_files_of_a_directory_are_skipped_if_another_file_has_rows(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.jsonl").write_text("")
    (tmp_path / "d/b.jsonl").write_text('{"a": 1}\n')
    assert [each.values for each in read.read(["d"], tmp_path) if isinstance(each, Row)] == [{"a": 1}]
    (tmp_path / "d/b.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"^d: none of the 2 files holds a row\. Name files that do\.$"):
        list(read.read(["d"], tmp_path))
    (tmp_path / "e.jsonl").write_text('{"a": 2}\n')
    with pytest.raises(UserError, match=r"d/a\.jsonl holds no rows"):
        list(read.read(["e.jsonl", "d/a.jsonl"], tmp_path))


@pytest.mark.parametrize("is_gzip", [False, True])
def test_parquet_rows_are_numbered_across_batches(
    is_gzip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_parquet_module, "ROWS", 2)
    table = Table.from_pylist([{"a": [1, None]}, {"a": []}, {"a": None}, {"a": [4]}, {"a": [5]}])
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=3)
    name = "rows.parquet"
    if is_gzip:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        name += ".gz"
    rows = [(each.source.row, each.values) for each in read.read([name], tmp_path) if isinstance(each, Row)]
    assert rows == list(enumerate([{"a": [1, None]}, {"a": []}, {"a": None}, {"a": [4]}, {"a": [5]}], 1))


def test_a_broken_parquet_file_is_reported_with_the_last_good_row(tmp_path: Path) -> None:
    table = Table.from_pylist([{"a": "word " * 50 + str(number)} for number in range(6)])
    file = tmp_path / "rows.parquet"
    parquet.write_table(table, file, row_group_size=3, compression="none", use_dictionary=False)
    content = bytearray(file.read_bytes())
    offset = parquet.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    content[offset : offset + 12] = b"\xff" * 12
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=r"^rows\.parquet cannot be read as Parquet after row \d: .*Write or copy it again"
    ):
        list(read.read(["rows.parquet"], tmp_path))


def test_fingerprints_are_keyed_by_the_given_file_name(tmp_path: Path) -> None:
    import hashlib

    touch(tmp_path, "d/a.csv", "b.json")
    (tmp_path / "b.json").write_text(json.dumps([{"a": 1}]))
    prints = fingerprint(["d", str(tmp_path / "b.json")], tmp_path)
    assert prints == {
        "d/a.csv": hashlib.sha256(b"{}\n").hexdigest(),
        str(tmp_path / "b.json"): hashlib.sha256(b'[{"a": 1}]').hexdigest(),
    }
