"""Row numbers, positions of bad bytes, long texts, the token cache, and the tokens that stop an answer."""

import csv
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import CHATML, byte_tokenizer
from stock_templates import stock, tokenizer_with
from tokenizers import Tokenizer, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from writing import answers

from tunesmith.cache_directory import cache_directory
from tunesmith.config.recipe import Recipe
from tunesmith.data import cache, read
from tunesmith.data.example import Malformed, Source
from tunesmith.data.prepare import prepare
from tunesmith.data.reading import delimited
from tunesmith.data.reading import pieces as pieces_module
from tunesmith.data.render import Renderer
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.inference.sampling import Sampling
from tunesmith.models.load import load_tokenizer


def rows_in(directory: Path, name: str, content: bytes, is_gzip: bool = False) -> list[tuple[int, Any]]:
    """(row number, values), or (row number, reason) of a malformed one."""
    name += ".gz" * is_gzip
    (directory / name).write_bytes(gzip.compress(content) if is_gzip else content)
    rows = list(read.read([name], directory))
    assert {row.source.file for row in rows} == {name}
    return [(row.source.row, row.reason if isinstance(row, Malformed) else row.values) for row in rows]


# Row numbers

ROW = {"q": "1", "a": "2"}


@pytest.mark.parametrize("is_gzip", [False, True], ids=["", "gz"])
@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        pytest.param("rows.jsonl", "\n%s\n\n  \n%s\n%s", [2, 5, 6], id="jsonl"),
        pytest.param("rows.ndjson", "%s\r\n\r\n%s\r\n%s\r\n", [1, 3, 4], id="ndjson with Windows line ends"),
        pytest.param("rows.json", "\n\n[%s,\n\n%s, %s]\n", [1, 2, 3], id="json: index in the list"),
        pytest.param("rows.json", '{"v": 1, "rows": [%s,%s,%s]}', [1, 2, 3], id="json: index in the inner list"),
        pytest.param("rows.json", "%s\n\n%s\n%s\n", [1, 3, 4], id="json that is jsonl"),
        pytest.param("rows.csv", "q,a\n1,2\n\n1,2\n\n\n1,2\n", [1, 3, 6], id="csv: record after the header"),
        pytest.param("rows.csv", "\n\nq,a\n\n1,2\n1,2\n1,2", [2, 3, 4], id="csv: blank lines before the header"),
        pytest.param("rows.csv", "q;a\r\n1;2\r\n1;2\r\n\r\n1;2\r\n", [1, 2, 4], id="csv with semicolons"),
        pytest.param("rows.csv", "q\ta\n1\t2\n1\t2\n1\t2\n", [1, 2, 3], id="csv with tabs"),
        pytest.param("rows.tsv", "q\ta\n\n1\t2\n1\t2\n1\t2\n", [2, 3, 4], id="tsv"),
    ],
)
def test_blank_lines_are_counted_but_are_not_rows(
    name: str, content: str, numbers: list[int], is_gzip: bool, tmp_path: Path
) -> None:
    if "%s" in content:
        content %= (json.dumps(ROW),) * 3
    assert rows_in(tmp_path, name, content.encode(), is_gzip) == [(number, ROW) for number in numbers]


def test_line_breaks_inside_quotes_belong_to_the_record(tmp_path: Path) -> None:
    content = 'q,a\n"one\n\ntwo","3\r\n4"\n1,2\n'
    assert rows_in(tmp_path, "rows.csv", content.encode()) == [(1, {"q": "one\n\ntwo", "a": "3\r\n4"}), (2, ROW)]


def test_the_delimiter_is_the_first_of_comma_semicolon_and_tab_in_the_header(tmp_path: Path) -> None:
    assert rows_in(tmp_path, "one.csv", b"text\nsome words\n") == [(1, {"text": "some words"})]
    assert rows_in(tmp_path, "comma.csv", b"a;b,c\n1;2,3\n") == [(1, {"a;b": "1;2", "c": "3"})]
    assert rows_in(tmp_path, "semicolon.csv", b"a\tb;c\n1\t2;3\n") == [(1, {"a\tb": "1\t2", "c": "3"})]
    assert rows_in(tmp_path, "tabs.tsv", b"a,b\tc\n1,2\t3\n") == [(1, {"a,b": "1,2", "c": "3"})]


def test_csv_rows_with_a_wrong_number_of_fields_are_malformed(tmp_path: Path) -> None:
    rows_read = rows_in(tmp_path, "rows.csv", b"q,a,c\n1,2,3\n1,2\n1\n1,2,3,4\n,,\n1,2,3\n")
    names = "but the header names 3 (q, a, c)"
    complete = {"q": "1", "a": "2", "c": "3"}
    assert rows_read == [
        (1, complete),
        (2, f"2 fields, {names}"),
        (3, f"1 field, {names}"),
        (4, f"4 fields, {names}"),
        (5, {"q": "", "a": "", "c": ""}),
        (6, complete),
    ]


def test_an_unclosed_quote_is_reported_at_the_row_where_it_opens(tmp_path: Path) -> None:
    rows_read = rows_in(tmp_path, "rows.csv", b'q,a\n1,2\n\n"open,2\n1,2\n1,2\n')
    assert rows_read == [
        (1, ROW),
        (3, "a quote is opened here and never closed, so the rest of the file belongs to it"),
    ]


def test_a_field_over_the_limit_counts_as_an_unclosed_quote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "LARGEST_FIELD", 1000)
    content = 'q,a\n1,2\n"open' + "x" * 1000 + "\n1,2\n"
    try:
        rows = rows_in(tmp_path, "rows.csv", content.encode())
    finally:
        csv.field_size_limit(131_072)
    assert rows[:2] == [(1, ROW), (2, "a field of more than 1,000 characters: a quote is opened here and never closed")]


def test_a_long_document_in_a_csv_field_is_read(tmp_path: Path) -> None:
    long = "word " * 40_000  # more than the default limit of the csv module
    assert rows_in(tmp_path, "rows.csv", f"q,a\n{long},2\n".encode()) == [(1, {"q": long, "a": "2"})]


def test_broken_quoting_is_malformed_and_the_next_row_is_read(tmp_path: Path) -> None:
    rows_read = rows_in(tmp_path, "rows.csv", b'q,a\n"x"y,2\n1,2\n')
    assert [number for number, _ in rows_read] == [1, 2]
    assert rows_read[0][1].startswith("broken quoting (")
    assert rows_read[0][1].endswith("); inside a quoted field, write a quote twice")
    assert rows_read[1] == (2, ROW)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"q,a\n1,2\n', "the first line, which names the columns, is broken: a quote is opened here and never closed"),
        (b"q,a,b,a,q\n1,2,3,4,5\n", "the first line names column 'q' twice. Give each column its own name."),
        (b"q,\xff\n1,2\n", "the first line, which names the columns, is not UTF-8 at byte 2. Save it as UTF-8."),
    ],
)
def test_a_broken_header_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        rows_in(tmp_path, "rows.csv", content)
    assert str(error.value).startswith(f"rows.csv: {message}")


# Positions of bad bytes

MARK = b"\xef\xbb\xbf"
OTHER = "é€😀".encode()  # two, three and four bytes


@pytest.mark.parametrize("mark", [b"", MARK], ids=["", "with a byte order mark"])
@pytest.mark.parametrize("is_gzip", [False, True], ids=["", "gz"])
@pytest.mark.parametrize(
    ("name", "before", "after", "bad", "rows"),
    [
        pytest.param("a.jsonl", b'{"q": "1"}\n\n\n{"q": "', b'"}\n{"q": "1"}\n', 4, [1, 5], id="jsonl"),
        pytest.param("a.jsonl", b'{"q": "%s"}\n{"q": "%s' % (OTHER, OTHER), b'"}\n', 2, [1], id="jsonl, not ASCII"),
        pytest.param("a.csv", b'q\n1\n"%s\n%s"\n%s' % (OTHER, OTHER, OTHER), b"\n5\n", 3, [1, 2, 4], id="csv, wide"),
        pytest.param("a.csv", b'q\r\n1\r\n"2\r\n', b'3"\r\n5\r\n', 2, [1, 3], id="csv, inside a quoted record"),
        pytest.param("a.tsv", b"q\ta\n1\t2\n1\t", b"\n1\t2\n", 2, [1, 3], id="tsv"),
        pytest.param("a.json", b'[{"q": "%s"}, {"q": "' % OTHER, b'"}, {"q": "1"}]', 2, [1, 3], id="json"),
        pytest.param("a.json", b'{"q": "1"}\n{"q": "%s' % OTHER, b'"}\n{"q": "1"}', 2, [1, 3], id="json that is jsonl"),
        pytest.param("a.txt", b"some words and %s" % OTHER, b" more", 1, [], id="text"),
    ],
)  # fmt: skip
def test_an_invalid_utf8_byte_is_reported_with_its_position(
    name: str, before: bytes, after: bytes, bad: int, rows: list[int], is_gzip: bool, mark: bytes, tmp_path: Path
) -> None:
    content = mark + before + b"\xff\xfe" + after
    rows_read = rows_in(tmp_path, name, content, is_gzip)
    reason = f"not valid UTF-8 at byte {content.index(0xFF):,} of the file (counted from 0). Save the file as UTF-8"
    assert (bad, reason) in rows_read
    assert [number for number, _ in rows_read] == sorted([*rows, bad])


def test_each_bad_row_has_its_own_byte_position(tmp_path: Path) -> None:
    content = b"q\n\xe9\n" + OTHER + b"\n\xe9\n" + b"a\xe9\xe9\n" + b"1\n"
    positions = [index for index, byte in enumerate(content) if byte == 0xE9]
    rows_read = rows_in(tmp_path, "rows.csv", content)
    reasons = [reason for number, reason in rows_read if number in (1, 3, 4)]
    matches = [f"byte {byte} of" in str(reason) for byte, reason in zip(positions[:3], reasons, strict=False)]
    assert matches == [True] * 3
    assert [number for number, values in rows_read if isinstance(values, dict)] == [2, 5]


def test_a_large_byte_position_has_thousands_separators(tmp_path: Path) -> None:
    content = b'{"q": "' + b"x" * 1_234_560 + b'\xff"}\n'
    ((number, reason),) = rows_in(tmp_path, "rows.jsonl", content)
    assert number == 1
    assert "at byte 1,234,567 of the file" in reason


def test_a_bad_byte_in_a_later_piece_of_a_long_text_has_its_file_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces_module, "WHOLE", 50)
    monkeypatch.setattr(pieces_module, "PIECE", 10)
    content = b"one two three\n\n" * 3 + b"four \xfffive six\n\nseven"
    rows_read = rows_in(tmp_path, "book.txt", content)
    assert [values for _, values in rows_read[:3]] == ["one two three\n\n"] * 3
    assert rows_read[3] == (4, "not valid UTF-8 at byte 50 of the file (counted from 0). Save the file as UTF-8")
    assert rows_read[4] == (5, "seven")


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"x" * 50, [b"x" * 50], id="the longest document"),
        pytest.param(b"x" * 51, [b"x" * 20, b"x" * 20, b"x" * 11], id="between any two characters"),
        pytest.param(
            b"a b\n\nc d e f g\n\n\n \nh\n\n" + b"i" * 40,
            [b"a b\n\nc d e f g\n\n\n \n", b"h\n\n" + b"i" * 17, b"i" * 20, b"i" * 3],
            id="after all blank lines",
        ),
        pytest.param(b"a b c d\ne f g h i\nj" + b" k" * 20, None, id="after a line end"),
        pytest.param("é".encode() * 30, [("é" * 10).encode()] * 3, id="not inside two bytes"),
        pytest.param("€".encode() * 20, [("€" * 6).encode()] * 3 + ["€€".encode()], id="not inside three bytes"),
    ],
)
def test_a_long_text_is_split_at_the_best_boundary(
    content: bytes, pieces: list[bytes] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces_module, "WHOLE", 50)
    monkeypatch.setattr(pieces_module, "PIECE", 10)
    actual = list(pieces_module.pieces(BytesIO(content)))
    assert b"".join(actual) == content
    if pieces is None:
        assert actual[0] == b"a b c d\ne f g h i\n"
        assert actual[1:] == [b"j k k k k k ", b"k k k k k k ", b"k k k k k k ", b"k k k"]
    else:
        assert actual == pieces


# The token cache

SETTINGS = {"data": {"train": ["a.jsonl"], "max_length": 64}, "objective": {"kind": "text"}, "mix_seed": None}
PRINTS = {"a.jsonl": "11", "b.jsonl": "22"}


def key_of(**changed: Any) -> str:
    values = {"fingerprints": PRINTS, "tokenizer": byte_tokenizer(), "settings": SETTINGS, **changed}
    return cache.cache_key(**values)


def with_tokenizer(change: Callable[[PreTrainedTokenizerBase], Any]) -> dict[str, Any]:
    tokenizer = byte_tokenizer()
    change(tokenizer)
    return {"tokenizer": tokenizer}


def changed_vocabulary() -> dict[str, Any]:
    """Another vocabulary; the same special tokens and template."""
    other = byte_tokenizer()
    state = json.loads(other.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other._tokenizer = Tokenizer.from_str(json.dumps(state))
    return {"tokenizer": other}


def change_pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """The same vocabulary, but texts begin with a space."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "a file's bytes": lambda: {"fingerprints": {**PRINTS, "b.jsonl": "23"}},
    "a file's name": lambda: {"fingerprints": {"a.jsonl": "11", "c.jsonl": "22"}},
    "the bytes of two files swapped": lambda: {"fingerprints": {"a.jsonl": "22", "b.jsonl": "11"}},
    "one more file": lambda: {"fingerprints": {**PRINTS, "c.jsonl": "33"}},
    "the vocabulary": changed_vocabulary,
    "the pre-tokenizer": lambda: with_tokenizer(change_pre_tokenizer),
    "the role of a special token": lambda: with_tokenizer(lambda each: setattr(each, "eos_token", "<|endoftext|>")),
    "the chat template": lambda: with_tokenizer(lambda each: setattr(each, "chat_template", CHATML + " ")),
    "no chat template": lambda: with_tokenizer(lambda each: setattr(each, "chat_template", None)),
    "the data settings": lambda: {"settings": {**SETTINGS, "data": {**SETTINGS["data"], "max_length": 65}}},  # type: ignore[dict-item]
    "the objective": lambda: {"settings": {**SETTINGS, "objective": {"kind": "instruction"}}},
    "the seed of the mix": lambda: {"settings": {**SETTINGS, "mix_seed": 0}},
}


def test_the_key_does_not_depend_on_the_order_of_its_parts() -> None:
    assert key_of() == key_of()
    assert key_of() == key_of(fingerprints=dict(reversed(PRINTS.items())), settings=dict(reversed(SETTINGS.items())))
    assert len(key_of()) == 64
    assert int(key_of(), 16) > 0


def test_every_change_of_what_decides_the_tokens_gives_another_key() -> None:
    keys = {"nothing": key_of(), **{name: key_of(**change()) for name, change in CHANGES.items()}}
    assert len(set(keys.values())) == len(CHANGES) + 1


def test_the_vocabulary_of_a_python_tokenizer_is_in_the_key() -> None:
    class Plain:
        """The attributes of a slow transformers tokenizer that decide the tokens."""

        special_tokens_map = {"eos_token": "</s>"}  # noqa: RUF012
        chat_template = None

        def __init__(self, **vocabulary: int) -> None:
            self.get_vocab = lambda: vocabulary

    first, same, other = Plain(a=1, b=2), Plain(b=2, a=1), Plain(a=2, b=1)
    assert key_of(tokenizer=first) == key_of(tokenizer=same)
    assert key_of(tokenizer=first) != key_of(tokenizer=other)


@pytest.mark.parametrize("package", ["transformers", "tokenizers", "jinja2", "pyarrow"])
def test_another_library_version_gives_another_key(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of()
    monkeypatch.setattr(cache, "version", lambda name: "0.0.1" if name == package else version(name))
    assert key_of() != before


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("data/read.py", True),
        ("objectives/text.py", True),
        ("heads/embedding.py", True),
        ("config/head.py", True),
        ("config/objective.py", True),
        ("config/registry.py", True),
        ("config/train.py", False),
        ("models/load.py", False),
    ],
)
def test_changed_code_of_what_makes_token_tables_gives_another_key(
    file: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(cache.__file__).parent.parent
    for part in ("config", "data", "heads", "objectives", "models"):
        shutil.copytree(package / part, tmp_path / part, ignore=shutil.ignore_patterns("embedded", "__pycache__"))
    before = key_of()
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "data" / "cache.py"))
    assert key_of() == before, "the same code in another directory"
    with (tmp_path / file).open("a", encoding="utf-8") as code:
        code.write("# another line\n")
    assert (key_of() != before) == counts


def test_code_moved_to_another_file_gives_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    shutil.copytree(Path(cache.__file__).parent.parent / "config", tmp_path / "config")
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "data" / "cache.py"))
    keys = []
    for name in ("a.py", "b.py"):
        (tmp_path / "data" / name).write_text("x = 1\n")
        keys.append(key_of())
        (tmp_path / "data" / name).unlink()
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("variables", "directory"),
    [
        ({"TUNESMITH_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/tunesmith"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": ""}, "/home/me/.cache/tunesmith"),
    ],
)
def test_the_cache_directory_follows_the_environment(
    variables: dict[str, str], directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNESMITH_CACHE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(directory)


def labeled_table() -> TokenTable:
    rows = [
        (np.array([5, 6, 7], np.int32), np.array([False, False, True]), Source("a.csv", 4), (1.0, 0.5)),
        (np.array([8], np.int32), np.array([True]), Source("b.csv", 2), (0.0, 2.0)),
    ]
    return TokenTable.build(rows)


def same_tables(one: TokenTable, other: TokenTable) -> bool:
    arrays = ("ids", "loss_mask", "offsets", "file", "row", "targets", "target_offsets")
    pairs = [(getattr(one, name), getattr(other, name)) for name in arrays]
    equal = all((a is None and b is None) or (a.dtype == b.dtype and a.tolist() == b.tolist()) for a, b in pairs)
    return equal and one.files == other.files


def test_the_cache_returns_the_same_tables_memory_mapped(tmp_path: Path) -> None:
    labeled = labeled_table()
    plain = TokenTable.build(row[:3] for row in labeled.rows())
    directory = tmp_path / "deep" / "key"
    cache.save(directory, (("train", labeled), ("held_out", plain)), {"rows": 3})
    stored = cache.load(directory, ("held_out", "train"))
    assert stored is not None
    (held_out, train), report = stored
    assert same_tables(train, labeled)
    assert same_tables(held_out, plain)
    assert report == {"rows": 3}
    assert isinstance(train.ids, np.memmap)
    assert [each.name for each in directory.parent.iterdir()] == ["key"], "no partial directory is left"


def test_a_failed_save_leaves_no_files(tmp_path: Path) -> None:
    def tables() -> Any:
        yield "train", labeled_table()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cache.save(tmp_path / "key", tables(), {})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_cache_entry_is_not_overwritten(tmp_path: Path) -> None:
    cache.save(tmp_path / "key", (("train", labeled_table()),), {"first": True})
    cache.save(tmp_path / "key", (("train", labeled_table()),), {"first": False})
    stored = cache.load(tmp_path / "key", ("train",))
    assert stored is not None
    assert stored[1] == {"first": True}
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def remove(file: str) -> Callable[[Path], None]:
    return lambda directory: (directory / file).unlink()


def cut(file: str, size: int) -> Callable[[Path], None]:
    return lambda directory: (directory / file).write_bytes((directory / file).read_bytes()[:size])


@pytest.mark.parametrize(
    "breaks",
    [
        pytest.param(remove("report.json"), id="no report"),
        pytest.param(cut("report.json", 0), id="an empty report"),
        pytest.param(cut("report.json", 20), id="half a report"),
        pytest.param(lambda directory: (directory / "report.json").write_text("{}"), id="a report without keys"),
        pytest.param(remove("train.ids.npy"), id="no ids"),
        pytest.param(cut("train.ids.npy", 0), id="empty ids"),
        pytest.param(cut("train.ids.npy", 60), id="half a header"),
        pytest.param(cut("train.loss_mask.npy", 140), id="half a loss mask"),
        pytest.param(remove("held_out.offsets.npy"), id="the other side's offsets are missing"),
        pytest.param(shutil.rmtree, id="nothing at all"),
    ],
)
def test_a_broken_cache_entry_is_made_again_with_a_warning(
    breaks: Callable[[Path], None],
    tiny_model: Path,
    write_rows: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = {"train": str(write_rows(12)), "held_out": 0.3}
    recipe = Recipe.load({"base": str(tiny_model), "data": data})
    tokenizer = load_tokenizer(recipe.base)
    first = prepare(recipe, tokenizer)
    (directory,) = (tmp_path / "cache" / "tokens").iterdir()
    assert cache.load(directory, ("train", "held_out")) is not None
    breaks(directory)
    left = directory.exists()
    again = prepare(recipe, tokenizer)
    assert not again.report.cached
    warned = [record.message for record in caplog.records if record.name == "tunesmith.data.cache"]
    assert len(warned) == left
    assert all(f"{directory} is broken (" in line and "\n" not in line for line in warned)
    assert asdict(again.report) == asdict(first.report)
    assert same_tables(again.train, first.train)
    assert same_tables(again.held_out, first.held_out)
    assert [each.name for each in directory.parent.iterdir()] == [directory.name]
    assert prepare(recipe, tokenizer).report.cached, "it is repaired"


def test_the_same_bytes_under_another_file_name_miss_the_cache(
    tiny_model: Path, write_rows: Callable[..., Path]
) -> None:
    file = write_rows(12)
    other = write_rows(12, "other.jsonl")
    assert file.read_bytes() == other.read_bytes()
    cached, sources = [], []
    for train in (file, file, other):
        recipe = Recipe.load({"base": str(tiny_model), "data": {"train": str(train), "held_out": 0.3}})
        prepared = prepare(recipe, load_tokenizer(recipe.base))
        cached.append(prepared.report.cached)
        sources.append(prepared.train.source(0).file)
        assert prepared.fingerprints == {str(train): hashlib.sha256(train.read_bytes()).hexdigest()}
    assert cached == [False, True, False]
    assert sources[2].endswith("other.jsonl")


# The tokens that stop an answer

PHI = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}" + (
    "{% if add_generation_prompt %}<|assistant|>{% else %}<|endoftext|>{% endif %}"
)


@pytest.mark.parametrize(
    ("tokenizer", "ends"),
    [
        pytest.param(lambda: stock("llama3"), {"<|eot_id|>"}, id="the end of turn is the end of text"),
        pytest.param(lambda: stock("qwen2_5"), {"<|im_end|>"}, id="qwen"),
        pytest.param(lambda: stock("gemma3"), {"<end_of_turn>", "<eos>"}, id="the end of turn is another token"),
        pytest.param(lambda: tokenizer_with(PHI, "phi3"), {"<|end|>", "<|endoftext|>"}, id="phi"),
        pytest.param(byte_tokenizer, {"<|im_end|>", "<|endoftext|>"}, id="with an end of document"),
    ],
)
def test_an_answer_stops_at_the_end_of_turn_text_or_document(
    tokenizer: Callable[[], PreTrainedTokenizerBase], ends: set[str]
) -> None:
    made = tokenizer()
    assert set(made.convert_ids_to_tokens(Renderer(made).stop_tokens)) == ends
    made.chat_template = None
    without = {str(made.eos_token), *({"<|endoftext|>"} & set(made.get_vocab()))}
    assert set(made.convert_ids_to_tokens(Renderer(made).stop_tokens)) == without


def bigram_model(tokenizer: PreTrainedTokenizerBase, *after: tuple[str, str]) -> LlamaForCausalLM:
    """A model whose next token depends only on the last one, as given: its blocks add nothing."""
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size + size % 2, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=256, eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, config.hidden_size))
        for one, following in after:
            model.lm_head.weight[ids_of(tokenizer, following), ids_of(tokenizer, one)] = 1.0
    return model


def ids_of(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    index = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(index, int)
    return index


@pytest.mark.parametrize(
    ("end", "own", "answer"),
    [
        pytest.param("<|end|>", None, "xy", id="the end token of the template only"),
        pytest.param("<|endoftext|>", None, "xy", id="the end of a text"),
        pytest.param("z", "z", "xy", id="the end token of the base"),
        pytest.param("z", ["q", "z"], "xy", id="one of several end tokens of the base"),
        pytest.param("z", None, "xyzw", id="no end token"),
    ],
)
def test_generation_stops_at_the_end_tokens_of_the_template_and_the_base(end: str, own: Any, answer: str) -> None:
    tokenizer = tokenizer_with(PHI, "phi3")
    model = bigram_model(tokenizer, ("<|assistant|>", "x"), ("x", "y"), ("y", end), (end, "w"), ("w", "w"))
    names = own if isinstance(own, list) else [own] if own else []
    model.generation_config.eos_token_id = [ids_of(tokenizer, name) for name in names] or None
    chats = [[{"role": "user", "content": question}] for question in ("Hi", "A longer question")]
    generated = answers(model, tokenizer, chats, Sampling(max_new_tokens=4))
    assert generated == [answer, answer]
