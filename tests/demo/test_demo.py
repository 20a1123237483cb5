"""The demo's data are real, thousands, and leak nothing; the demo itself runs to its end."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.cli.demo import demo
from tunesmith.demo.docstrings import Pair, is_held_out, pairs, question, split, summary, write_pairs
from tunesmith.demo.standard_library import Documented


@pytest.fixture(scope="module")
def found() -> list[Pair]:
    return pairs()


def test_there_are_thousands_of_pairs_and_each_names_its_thing(found: list[Pair]) -> None:
    assert len(found) > 3000
    assert len({pair.name for pair in found}) == len(found)
    assert all(pair.name.rpartition(".")[2] in pair.question for pair in found)
    kinds = Counter(pair.answer.partition(".")[0] for pair in found)
    assert set(kinds) == {"Module", "Function", "Class", "Exception", "Method", "Attribute"}


def test_no_module_is_on_both_sides_and_no_answer_is_learnt_that_is_asked(found: list[Pair]) -> None:
    train, held_out, removed = split(found)
    tops = [{pair.module.partition(".")[0] for pair in side} for side in (train, held_out)]
    assert not tops[0] & tops[1]
    assert not {pair.answer.casefold() for pair in train} & {pair.answer.casefold() for pair in held_out}
    assert 100 < len(held_out) < 0.25 * len(train)
    assert len(train) + len(held_out) + removed == len(found)
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
def test_the_answer_is_the_first_sentence_made_plain(docstring: str, expected: str | None) -> None:
    thing = Documented("os.path", "os.path.abspath", "function", "(path)", docstring)
    assert summary(thing)[0] == expected


def test_a_question_has_the_signature() -> None:
    thing = Documented("os.path", "os.path.abspath", "function", "(path)", "x")
    assert question(thing) == "What is `os.path.abspath(path)`?"


@pytest.mark.long
def test_the_files_hold_what_the_counts_say(tmp_path: Path) -> None:
    train, held_out, counts = write_pairs(tmp_path)
    rows = [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in (train, held_out)]
    assert [len(side) for side in rows] == [counts["train"], counts["held_out"]]
    left_out = sum(count for name, count in counts.items() if name.startswith("left out"))
    assert counts["documented"] == counts["train"] + counts["held_out"] + counts["held_out_removed"] + left_out


@pytest.mark.long  # `make demo` is checked beside `make test`
def test_the_demo_runs_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    demo(None, ["train.steps=3", "train.evaluate_rows=20"])
    out = capsys.readouterr().out
    for told in ("1. The data", "2. Training", "3. Did it work?", "4. Five answers", "5. What next", "tunesmith chat"):
        assert told in out
    assert out.count("expected") == 5
    run = tmp_path / "runs" / "demo" / "run"
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["tuned"]["loss"] < evaluation["base"]["loss"]
    assert "Did it work?" in (run / "report.html").read_text(encoding="utf-8")
