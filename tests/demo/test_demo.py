"""The demo's data: thousands of real pairs without leakage. The demo itself runs to its end."""

import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from matrix import make_bases
from rich.console import Console

from tunesmith.cli.demo import MOST_ROWS, _fetched, demo
from tunesmith.config.base import Base
from tunesmith.demo.docstrings import Pair, is_held_out, pairs, question, split, summary, write_pairs
from tunesmith.demo.prose import write_prose
from tunesmith.demo.standard_library import Documented, documented
from tunesmith.demo.tools import LONGEST_ROW
from tunesmith.errors import UserError


@pytest.fixture(scope="module")
def all_pairs() -> list[Pair]:
    return pairs()


def test_there_are_thousands_of_pairs_and_each_question_names_its_object(all_pairs: list[Pair]) -> None:
    assert len(all_pairs) > 3000
    assert len({pair.name for pair in all_pairs}) == len(all_pairs)
    assert all(pair.name.rpartition(".")[2] in pair.question for pair in all_pairs)
    kinds = Counter(pair.answer.partition(".")[0] for pair in all_pairs)
    assert set(kinds) == {"Module", "Function", "Class", "Exception", "Method", "Attribute"}


def test_training_and_held_out_share_no_module_and_no_answer(all_pairs: list[Pair]) -> None:
    train, held_out, removed = split(all_pairs)
    tops = [{pair.module.partition(".")[0] for pair in side} for side in (train, held_out)]
    assert not tops[0] & tops[1]
    assert not {pair.answer.casefold() for pair in train} & {pair.answer.casefold() for pair in held_out}
    assert 100 < len(held_out) < 0.25 * len(train)
    assert len(train) + len(held_out) + removed == len(all_pairs)
    assert is_held_out("logging.handlers") == is_held_out("logging")


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the absolute path.", "Return the absolute path."),
        ("return the\n  absolute path", "Return the absolute path."),
        ("abspath(path) -> str\n\nReturn the absolute path. More.", "Return the absolute path."),
        ("Open :func:`a file` as ``text``.", "Open a file as text."),
        ("See above.", None),
        ("Deprecated since long ago.", None),
        ("Too short.", None),
        ("word " * 31, None),
    ],
)
def test_the_answer_is_the_first_sentence_without_markup(docstring: str, expected: str | None) -> None:
    thing = Documented("os.path", "os.path.abspath", "function", "(path)", docstring)
    assert summary(thing)[0] == expected


def test_a_question_contains_the_signature() -> None:
    thing = Documented("os.path", "os.path.abspath", "function", "(path)", "x")
    assert question(thing) == "What is `os.path.abspath(path)`?"


@pytest.mark.long
def test_the_counts_match_the_written_files(tmp_path: Path) -> None:
    train, held_out, counts = write_pairs(tmp_path)
    rows = [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in (train, held_out)]
    assert [len(side) for side in rows] == [counts["train"], counts["held_out"]]
    left_out = sum(count for name, count in counts.items() if name.startswith("left out"))
    assert counts["documented"] == counts["train"] + counts["held_out"] + counts["held_out_removed"] + left_out


@pytest.mark.long
def test_replayed_prose_is_more_than_a_tenth_of_the_tokens_and_not_what_is_tested(tmp_path: Path) -> None:
    lines = write_prose(tmp_path).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == len(set(texts)) > 1000
    assert sum(map(len, texts)) > 1.5 * 0.1 / 0.9 * MOST_ROWS * LONGEST_ROW
    assert any(text.startswith("These equivalences assume ") for text in texts)  # of the reference: "assert"
    assert all(20 <= len(text.split()) <= 100 and "::=" not in text for text in texts)

    def runs(of: Iterable[str]) -> set[tuple[str, ...]]:
        lists = [text.split() for text in of]
        return {tuple(words[at : at + 8]) for words in lists for at in range(len(words) - 7)}

    assert not runs(texts) & runs(thing.docstring for thing in documented() if thing.kind == "module")


@pytest.mark.long  # `make demo` is checked in addition to `make test`
def test_the_demo_runs_to_its_end_on_the_embedded_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    demo("embedded", set_=["train.steps=3"])
    out = capsys.readouterr().out
    for text in (
        "1. The data",
        "2. Training",
        "3. Did it work?",
        "4. What else changed?",
        "Loss on general text",
        "5. Use it",
        "6. Next steps",
        "tunesmith chat",
    ):
        assert text in out
    assert out.count("expected") == 2
    assert all(len(line) <= 80 for line in out.splitlines() if line.startswith(" "))
    run = tmp_path / "runs" / "demo" / "run"
    assert (run / "model" / "model.safetensors").exists()
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["models"]["tuned"]["loss"]["value"] < evaluation["models"]["base"]["loss"]["value"]
    assert "Did it work?" in (run / "report.html").read_text(encoding="utf-8")


def test_without_a_network_the_demo_continues_with_the_embedded_base_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(base: Base) -> str:
        raise UserError(f"base: {base.path}: nobody gives it.")

    monkeypatch.setattr("tunesmith.models.load.locate", refused)
    text = io.StringIO()
    console = Console(file=text, width=200)
    assert _fetched(console, None) == "embedded"
    assert "nobody gives it. The demo continues with the embedded base" in text.getvalue()
    with pytest.raises(UserError, match="nobody gives it"):
        _fetched(console, "smollm2-135m-instruct")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nosuch", "is no directory, no short name"),
        ("nosuch/base/at all", "does not exist"),
        ("encoder", "is an encoder"),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused_before_anything_is_written(
    base: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if base == "encoder":
        make_bases(tmp_path, ["bert"])
        (tmp_path / "bert").rename(tmp_path / base)
    with pytest.raises(UserError, match=message):
        demo(base)
    assert not (tmp_path / "runs").exists()
    assert capsys.readouterr().out == ""
