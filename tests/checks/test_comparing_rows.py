"""Checks that compare rows: contradictions, leakage, answers that repeat; each with what must not be marked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.checks import native, word_runs
from tunesmith.checks.driver import check_data
from tunesmith.checks.repetition import repeats

PROMPT = "Where does the river that flows through the old town and past the mill end, as far as people know today?"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def qa(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


def pairs(check: str, file: str, **options: Any) -> list[tuple[int, int]]:
    return [(mark.source.row, mark.others[0].row) for mark in check_data(file, **options)[check].marks]


def test_the_same_or_nearly_the_same_input_with_another_answer_is_a_contradiction() -> None:
    rows = [
        qa(PROMPT, "In the sea."),
        qa(PROMPT.upper(), "In the lake."),
        qa(PROMPT + " Please", "In the ocean."),
        qa(PROMPT, "in the  SEA."),
        qa("Another question altogether?", "In the lake."),
    ]
    assert pairs("contradictions", write("rows.jsonl", rows)) == [(2, 1), (3, 1)]


def test_inputs_with_other_numbers_do_not_contradict_each_other() -> None:
    rows = [qa(f"{PROMPT} Take {number} apples.", f"{number} apples.") for number in range(10, 14)]
    assert pairs("contradictions", write("rows.jsonl", rows)) == []


def test_texts_with_another_label_contradict_each_other() -> None:
    rows = [{"text": PROMPT, "label": "a"}, {"text": "short", "label": "b"}, {"text": PROMPT + "!", "label": "b"}]
    assert pairs("contradictions", write("rows.jsonl", rows)) == [(3, 1)]
    assert pairs("near_duplicates", "rows.jsonl") == []


def test_opposite_preferences_contradict_each_other() -> None:
    rows = [
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Hi?", "chosen": "Maybe.", "rejected": "No."},
        {"prompt": "Hi?", "chosen": "No.", "rejected": "Yes."},
    ]
    assert pairs("contradictions", write("rows.jsonl", rows)) == [(3, 1)]


def test_leaked_rows_are_found_with_the_row_that_they_are_in() -> None:
    shared = " ".join(f"w{number}" for number in range(13))
    other = [qa(PROMPT, "In the sea."), qa(f"Start {shared} end, and much else that is said here.", "No.")]
    rows = [
        qa("Nothing in common with them?", "No."),
        qa(PROMPT.replace("?", " ?"), "Elsewhere."),
        qa("Here?", f"It says: {shared.upper()}!"),
        qa(f"So {shared.replace('w7', 'x')} more.", "It does not."),
    ]
    file = write("rows.jsonl", rows)
    assert "leakage" not in check_data(file)
    other_file = write("other.jsonl", other)
    assert pairs("leakage", file, against=[other_file]) == [(2, 1), (3, 2)]
    assert check_data(file, against=[other_file]).rows == 4


def test_runs_of_a_template_of_the_other_files_are_no_leak() -> None:
    template = " ".join(f"w{number}" for number in range(15))
    other = write("other.jsonl", [qa(f"{template} a{number} b{number}", f"c{number}") for number in range(11)])
    file = write("rows.jsonl", [qa(template + " " + PROMPT, "In the sea.")])
    assert pairs("leakage", file, against=[other]) == []


def test_answers_and_openings_that_repeat_are_noted() -> None:
    long = "I am sorry, but I cannot help you with that, whatever you ask."
    rows = [qa(f"Question {number}, about thing {number}?", long) for number in range(3)]
    rows += [qa(f"Is {number} a number, or not?", "Yes.") for number in range(5)]
    assert pairs("repeated_answers", write("rows.jsonl", rows)) == [(2, 1), (3, 1)]
    opening = "As a language model I"
    rows = [qa(f"Why {n}?", f"{opening} know that w{n} is why x{n} and y{n} do so.") for n in range(10)]
    rows += [qa(f"How {n}?", f"b{n} c{n} d{n} e{n} f{n} and so on until the very end of it.") for n in range(100)]
    (result,) = [check_data(write("rows.jsonl", rows))["repeated_openings"]]
    assert result.count == 10
    assert "as 10 of 110 answers do" in result.first(1)[0].detail


@given(st.lists(st.integers(0, 5), max_size=30))
def test_repeats_are_rows_whose_hash_was_there_before(values: list[int]) -> None:
    rows, firsts = repeats(np.array(values, np.uint64))
    expected = [row for row, value in enumerate(values) if value and value in values[:row]]
    assert rows.tolist() == expected
    assert firsts.tolist() == [values.index(values[row]) for row in expected]


def test_runs_of_words_are_as_defined() -> None:
    if native.library() is None:
        pytest.skip("no compiler")
    texts = ["", "one two", " ".join(map(str, range(30))), "日本語のテキストはここにありますので読んで"]
    by_kernel, plain = word_runs.word_runs(texts), word_runs.by_definition(texts)
    np.testing.assert_array_equal(by_kernel[0], plain[0])
    np.testing.assert_array_equal(by_kernel[1], plain[1])
    assert plain[1].tolist()[:3] == [0, 0, 18]
