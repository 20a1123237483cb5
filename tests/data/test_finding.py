"""From what is named to the files that are read: paths, globs, hub data sets; and where the rows are in them."""

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
from tunesmith.data.json_rows import rows_of
from tunesmith.data.read import Row, fingerprint
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


def test_a_file_has_the_name_that_was_given_and_is_shown_as_it_would_be_typed(tmp_path: Path) -> None:
    base, elsewhere = tmp_path / "base", tmp_path / "elsewhere"
    touch(base, "in/a.JSONL", "b.csv.gz")
    touch(elsewhere, "c.tsv")
    found = find(["in", "./b.csv.gz", str(base / "in/../in/a.JSONL")][:2], base)
    assert found == [
        DataFile(base / "in/a.JSONL", "in/a.JSONL", "in/a.JSONL", False),
        DataFile(base / "b.csv.gz", "b.csv.gz", "b.csv.gz", True),
    ]
    assert [(each.ending, each.packed) for each in found if isinstance(each, DataFile)] == [
        (".jsonl", False),
        (".csv", True),
    ]
    (whole, outside) = find([str(base / "in/a.JSONL"), "../elsewhere/c.tsv"], base)
    assert whole == DataFile(base / "in/a.JSONL", str(base / "in/a.JSONL"), "in/a.JSONL", True)
    assert isinstance(outside, DataFile)
    assert outside.name == "../elsewhere/c.tsv"
    (far,) = find([str(elsewhere / "c.tsv")], base)
    assert far == DataFile(elsewhere / "c.tsv", str(elsewhere / "c.tsv"), str(elsewhere / "c.tsv"), True)


def test_directories_are_searched_in_order_through_all_levels_and_past_hidden_names(tmp_path: Path) -> None:
    touch(tmp_path, "d/z.json", "d/b/y.csv", "d/a/x.tsv", "d/.h/w.csv", "d/.v.csv", "d/u.bin", "d/a/t.parquet.gz")
    names = [each.name for each in find(["d"], tmp_path) if isinstance(each, DataFile)]
    assert names == ["d/z.json", "d/a/t.parquet.gz", "d/a/x.tsv", "d/b/y.csv"]
    assert all(not each.asked_for for each in find(["d"], tmp_path) if isinstance(each, DataFile))
    names = [each.name for each in find(["d/**/*.[ct]sv"], tmp_path) if isinstance(each, DataFile)]
    assert names == ["d/a/x.tsv", "d/b/y.csv"]
    assert not any(each.asked_for for each in find(["d/*/*.csv"], tmp_path) if isinstance(each, DataFile))


def test_a_directory_of_rows_and_documents_is_refused_with_one_of_each(tmp_path: Path) -> None:
    touch(tmp_path, "d/a.csv", "d/b.csv", "d/c.json", "d/e.md")
    assert refused("d/", tmp_path) == (
        "d/ holds both rows (a.csv and 2 more) and documents (e.md). Name the ones you mean, for example d/**/*.csv."
    )
    touch(tmp_path, "texts/a.txt", "texts/b.md.gz")
    assert len(find(["texts"], tmp_path)) == 2
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "empty/a.bin")
    assert refused("empty", tmp_path) == (
        "empty holds no file with a known ending (.json, .jsonl, .ndjson, .csv, .tsv, .parquet, .txt, .md; each also "
        "with .gz)."
    )


KNOWN = "Known: .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .txt, .md, each also with .gz."


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.xls", f"a.xls: '.xls' does not say what the file holds. {KNOWN} Save the sheet as CSV (UTF-8)."),
        ("a.PDF", f"a.PDF: '.pdf' does not say what the file holds. {KNOWN} Save its text as .txt."),
        ("a.csv.zip", f"a.csv.zip: '.zip' does not say what the file holds. {KNOWN} Unpack it first."),
        ("a.dat", f"a.dat: '.dat' does not say what the file holds. {KNOWN} Rename it to what it holds."),
        ("a", f"a: no ending does not say what the file holds. {KNOWN} Rename it to what it holds."),
        ("a.gz", f"a.gz: no ending does not say what the file holds. {KNOWN} Rename it to what it holds."),
    ],
)
def test_a_file_of_no_known_kind_is_refused_with_what_to_do(name: str, told: str, tmp_path: Path) -> None:
    touch(tmp_path, name)
    assert refused(name, tmp_path) == told


def test_what_is_not_there_is_refused_with_what_is_nearest(tmp_path: Path) -> None:
    touch(tmp_path, "data/rows.jsonl", "data/other.csv")
    assert refused("data/row.jsonl", tmp_path) == (
        "data/row.jsonl: no such file or directory. Did you mean data/rows.jsonl?"
    )
    assert refused("dat/rows.jsonl", tmp_path) == "dat/rows.jsonl: no such file or directory. Did you mean data?"
    assert refused("data/wwwwwww.md", tmp_path) == (
        f"data/wwwwwww.md: no such file or directory. Looked for wwwwwww.md in {tmp_path}/data; a hub data set is "
        "hf://owner/name."
    )
    assert refused("data/*.tsv", tmp_path) == "data/*.tsv: no file fits this pattern. data is there."
    assert refused("dta/*.tsv", tmp_path) == "dta/*.tsv: no file fits this pattern. Did you mean data?"
    assert refused("https://example.org/a.csv", tmp_path) == (
        "https://example.org/a.csv is not on this machine. Download it and name the file; a hub data set is "
        "hf://owner/name."
    )


def test_a_file_or_data_set_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    told = "is named twice among the data (also as {}), so its rows would be learnt twice"
    assert refused(["a.csv", "./a.csv"], tmp_path).startswith("a.csv " + told.format("a.csv"))
    assert refused(["a.csv", "link.csv"], tmp_path).startswith("link.csv " + told.format("a.csv"))
    same = "hf://owner/name@train"
    assert refused(["owner/name", "hf://owner/name"], tmp_path).startswith(f"{same} " + told.format(same))


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
def test_owner_and_name_may_be_on_the_hub_unless_they_look_like_a_path(
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
def test_a_hub_data_set_is_a_repository_a_config_and_a_split(given: str, parts: Any, shown: str) -> None:
    found = HubDataSet.parse(given)
    assert (found.repository, found.config, found.split) == parts
    assert str(found) == shown
    with pytest.raises(UserError, match=r"^hf://a/b/c does not name a hub data set\. Write hf://owner/name"):
        HubDataSet.parse("hf://a/b/c")


class Hub:
    """As much of the hub's client as is asked, without a network."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def dataset_info(self, repository: str) -> Any:
        if self.error is not None:
            raise self.error
        return SimpleNamespace(sha=f"head of {repository}")


def test_a_data_set_is_streamed_at_the_commit_that_stands_for_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load(*args: Any, **options: Any) -> list[dict[str, int]]:
        asked.append((args, options))
        return [{"n": 1}, {"n": 2}]

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr("datasets.load_dataset", load)
    assert fingerprint(["owner/name:de@test"], tmp_path) == {"hf://owner/name:de@test": "commit:head of owner/name"}
    found = list(read.read(["owner/name:de@test"], tmp_path))
    assert [(str(each.source), each.values) for each in found if isinstance(each, Row)] == [
        ("hf://owner/name:de@test row 1", {"n": 1}),
        ("hf://owner/name:de@test row 2", {"n": 2}),
    ]
    options = {"split": "test", "streaming": True, "revision": "head of owner/name"}
    assert asked == [(("owner/name", "de"), options)]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [])
    with pytest.raises(UserError, match=r"^hf://owner/name@train holds no rows\. Name a file that does\.$"):
        list(read.read(["owner/name"], tmp_path))


def test_a_data_set_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = HubDataSet("owner/name", None, "train")
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    for error, told in (
        (
            RepositoryNotFoundError("no", response=response),
            "neither a path here nor a data set on the hub that you may",
        ),  # type: ignore[arg-type]
        (OSError("first\nsecond"), "cannot be read from the hub: first Look at the name, config"),
        (KeyError(), "cannot be read from the hub: KeyError Look at the name"),
    ):
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda error=error: Hub(error))
        with pytest.raises(UserError, match=f"hf://owner/name@train:? {told}"):
            commit(data_set)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)

    def load(*_: Any, **__: Any) -> Any:
        raise ValueError("Unknown split")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(UserError, match="hf://owner/name@train cannot be read from the hub: Unknown split Look"):
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
        pytest.param({"v": 1, "data": [{"a": 1}], "more": [1, 2]}, [{"a": 1}], id="the one list of objects"),
        pytest.param({"x": {"a": 1}, "y": {"a": 2}}, [{"a": 1}, {"a": 2}], id="objects by their ids"),
        pytest.param({"x": {"a": 1}}, [{"x": {"a": 1}}], id="a single object within one is the row's own"),
        pytest.param({"a": 1, "b": "x"}, [{"a": 1, "b": "x"}], id="the one row itself"),
        pytest.param({"messages": [TURN, TURN]}, [{"messages": [TURN, TURN]}], id="a chat is a row"),
        pytest.param({"conversations": [SHARED]}, [{"conversations": [SHARED]}], id="so is a shared one"),
        pytest.param({"a": [{"x": 1}], "b": [{"x": 1}]}, [{"a": [{"x": 1}], "b": [{"x": 1}]}], id="two lists tell not"),
        pytest.param({"a": [1, 2], "b": [3]}, [{"a": [1, 2], "b": [3]}], id="lists of unlike length are one row's"),
        pytest.param({"a": [1, 2], "b": 3}, [{"a": [1, 2], "b": 3}], id="so are lists beside something else"),
        pytest.param({"data": []}, [{"data": []}], id="an empty list"),
        pytest.param({}, [], id="nothing"),
    ],
)
def test_rows_are_found_in_the_shapes_that_exporters_write(value: Any, rows: list[Any]) -> None:
    assert rows_of(value, "a.json") == rows


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"q": [1, 2], "a": [3, 4]}, r"^a.json holds columns \(q, a\), each with all its values, not rows"),
        ({"q": [1], "a": ["x"]}, r"^a.json holds columns \(q, a\)"),
        ({"q": {"0": 1, "1": 2}, "a": {"0": 3, "1": 4}}, r"^a.json holds columns \(q, a\)"),
        ("text", r"^a.json holds a single str, not rows\. Write a list of objects\."),
        (3, r"^a.json holds a single int, not rows"),
    ],
)
def test_columns_and_single_values_are_no_rows(value: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        rows_of(value, "a.json")


# What is read of them


def rows_in(directory: Path, name: str, content: bytes) -> list[Any]:
    (directory / name).write_bytes(content)
    return [each.reason if isinstance(each, Malformed) else each.values for each in read.read([name], directory)]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", b'"text"', "a.json holds a single str, not rows"),
        ("a.json", b" \n", "a.json holds no rows. Name a file that does."),
        ("a.json", b"[{}, {]", "a.json is not valid JSON: Expecting property name enclosed in double quotes at line 1, "
            "character 7. Mend it there; if it was cut short, copy it again."),
        ("a.json", b"[1] [2]", "a.json is not valid JSON: Extra data at line 1, character 5"),
        ("a.json", b"[" * 100_000, "a.json is not valid JSON: "),
        ("a.jsonl", b"\n\n", "a.jsonl holds no rows"),
        ("a.csv", b"", "a.csv holds no rows"),
        ("a.csv", b"q,a\n", "a.csv holds no rows"),
        ("a.txt", b"", "a.txt holds no rows"),
        ("a.csv", "é,b".encode("utf-16-le"), None),
        ("a.csv", b"\xfe\xff\x00q", "a.csv is in UTF-16. Save it as UTF-8."),
        ("a.csv", b"\xff\xfeq\x00", "a.csv is in UTF-16. Save it as UTF-8."),
        ("a.csv.gz", gzip.compress(b"q,a\n1,2\n" * 99, mtime=0)[:-9], "a.csv.gz is cut short or is not gzip ("),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_a_line(name: str, content: bytes, told: str | None, tmp_path: Path) -> None:
    if told is None:
        assert b"\xff\xfe" not in content, "without its mark it cannot be told"
        return
    with pytest.raises(UserError) as error:
        rows_in(tmp_path, name, content)
    assert str(error.value).startswith(told)


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    for reading in (lambda: list(read.read(["a.jsonl"], tmp_path)), lambda: fingerprint(["a.jsonl"], tmp_path)):
        with pytest.raises(UserError, match=r"^a\.jsonl cannot be read: Permission denied\.$"):
            reading()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{]", "not valid JSON: Expecting property name enclosed in double quotes (character 2 of the line)"),
        (b"[" * 100_000, "not valid JSON: "),
        (b"[1]", "a list, not an object with named columns"),
        (b"true", "true or false, not an object with named columns"),
        (b"null", "null, not an object with named columns"),
        (b"1.5", "a number, not an object with named columns"),
        (rb'{"a": ["\uDC00"]}', r"holds half of a surrogate pair (such as \ud83d alone), which is no character"),
        (rb'{"a": ["\udc00"]}', r"holds half of a surrogate pair (such as \ud83d alone), which is no character"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_row_that_is_none_is_malformed_in_lines_and_in_lists(
    line: bytes, told: str, kind: str, tmp_path: Path
) -> None:
    if kind == "json" and told.startswith("not valid"):
        return
    content = b'{"a": 1}\n' + line if kind == "jsonl" else b'[{"a": 1}, ' + line + b"]"
    first, second = rows_in(tmp_path, f"rows.{kind}", content)
    assert first == {"a": 1}
    assert second.startswith(told)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_texts_are_rows_and_whole_pairs_of_surrogates_are_characters(kind: str, tmp_path: Path) -> None:
    lines = [rb'"text"', rb'{"a": "\ud83d\ude00 \\ud83d"}', rb'{"a": "\uD83D\uDE00"}']
    content = b"\n".join(lines) if kind == "jsonl" else b"[" + b",".join(lines) + b"]"
    assert rows_in(tmp_path, f"rows.{kind}", content) == ["text", {"a": "😀 \\ud83d"}, {"a": "😀"}]


def test_a_list_in_a_file_of_lines_is_refused_only_where_it_begins_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^rows\.jsonl begins as a JSON list, not as one object a line"):
        rows_in(tmp_path, "rows.jsonl", b' [{"a": 1},\n{"a": 2}]')
    assert rows_in(tmp_path, "rows.jsonl", b'{"a": 1}\n[{"a": 1},\n')[1].startswith("not valid JSON")
    assert rows_in(tmp_path, "rows.jsonl", b'[{"a": 1}]\n{"a": 1}\n')[1] == {"a": 1}


def test_files_that_hold_no_rows_are_passed_over_where_others_do(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("packed", [False, True])
def test_parquet_s_rows_are_counted_over_its_pieces(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "PARQUET_ROWS", 2)
    table = Table.from_pylist([{"a": [1, None]}, {"a": []}, {"a": None}, {"a": [4]}, {"a": [5]}])
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=3)
    name = "rows.parquet"
    if packed:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        name += ".gz"
    found = [(each.source.row, each.values) for each in read.read([name], tmp_path) if isinstance(each, Row)]
    assert found == list(enumerate([{"a": [1, None]}, {"a": []}, {"a": None}, {"a": [4]}, {"a": [5]}], 1))


def test_parquet_that_breaks_off_says_after_which_row(tmp_path: Path) -> None:
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


def test_fingerprints_are_of_each_file_by_the_name_that_was_given(tmp_path: Path) -> None:
    import hashlib

    touch(tmp_path, "d/a.csv", "b.json")
    (tmp_path / "b.json").write_text(json.dumps([{"a": 1}]))
    found = fingerprint(["d", str(tmp_path / "b.json")], tmp_path)
    assert found == {
        "d/a.csv": hashlib.sha256(b"{}\n").hexdigest(),
        str(tmp_path / "b.json"): hashlib.sha256(b'[{"a": 1}]').hexdigest(),
    }
