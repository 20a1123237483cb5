"""Checks that judge a row by its set: the main language, and how answers usually end."""

import json
from pathlib import Path

import pytest

from tunesmith.checks.driver import check_data


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write_answers(answers: list[str]) -> None:
    rows = [{"question": f"What about number {n}?", "answer": answer} for n, answer in enumerate(answers)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def marked(name: str) -> list[int]:
    return [mark.source.row for mark in check_data("rows.jsonl", only=[name])[name].marks]


CUT = "It is on the left side of the river, and you can see it from the"
WHOLE = "It is on the left side of the river, and you can see it from the bridge."
GERMAN = "Sie finden es auf der linken Seite des Flusses, gleich neben der alten Brücke."


def test_cut_answers_are_found_where_answers_usually_end_as_sentences() -> None:
    write_answers([WHOLE] * 9 + [CUT])
    (mark,) = check_data("rows.jsonl")["truncated_answers"].marks
    assert mark.source.row == 10
    assert "you can see it from the" in mark.detail


def test_no_answer_is_cut_in_a_set_that_is_written_without_periods() -> None:
    write_answers([f"{WHOLE[:-1]} number {n} in the town" for n in range(9)] + [WHOLE])
    assert marked("truncated_answers") == []


def test_rows_out_of_the_main_language_are_found_and_languages_counted() -> None:
    write_answers([WHOLE] * 9 + [GERMAN])
    found = check_data("rows.jsonl")
    (mark,) = found["wrong_language"].marks
    assert (mark.source.row, mark.detail) == (10, "in German; 90% are in English")
    assert found.summary["languages"] == {"en": 9, "de": 1}


def test_a_set_without_a_main_language_has_no_wrong_one() -> None:
    write_answers([WHOLE, GERMAN] * 5)
    assert marked("wrong_language") == []


def test_answers_without_the_last_line_that_all_others_have_are_cut() -> None:
    write_answers([f"She has {n} + 2 apples.\nThat is {n + 2}.\n#### {n + 2}" for n in range(9)] + ["She has 9 + 2"])
    (mark,) = check_data("rows.jsonl", only=["truncated_answers"])["truncated_answers"].marks
    assert mark.source.row == 10
    assert mark.detail == "the last line does not begin with “####”, as that of 90% of the answers does"


def test_rows_that_the_set_shows_are_listed_in_order_with_the_others() -> None:
    last = "\nAnswer: it is so."
    write_answers([WHOLE + last] * 5 + [CUT] + [WHOLE + last] * 5 + [WHOLE])
    marks = list(check_data("rows.jsonl", only=["truncated_answers"])["truncated_answers"].marks)
    assert [mark.source.row for mark in marks] == [6, 12]
    assert "you can see it from the" in marks[0].detail
