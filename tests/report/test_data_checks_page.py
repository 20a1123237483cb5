"""The page of the data checks: every check with its rows in their place, without secrets, the check left alone."""

import json
from html import unescape
from pathlib import Path

import pytest

from tunesmith.checks.driver import check_data, subject_of
from tunesmith.checks.rows_again import read_again
from tunesmith.data.example import Malformed, Source
from tunesmith.report.data_checks import Asked
from tunesmith.report.data_checks_page import write_checks_page

SECRET = "ghp_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7cF0xL3nR6"


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"question": f"What is number {n}?", "answer": f"She says it is {n}."}) for n in range(20)]
    lines[4] = json.dumps({"question": "Whose is it?", "answer": f"Ask ann@example.org, with {SECRET} <b>now</b>."})
    lines[9] = lines[7]
    lines[10] = lines[7]
    lines[15] = "{broken"
    Path("rows.jsonl").write_text("\n".join(lines), encoding="utf-8")


def page(*names: str) -> str:
    found = check_data("rows.jsonl", only=names)
    subject = subject_of("rows.jsonl", [])
    path = write_checks_page(
        Path("page.html"), found, subject.files, subject.others, Asked(["rows.jsonl"], ["held out.jsonl"])
    )
    return unescape(path.read_text(encoding="utf-8"))


def test_marked_rows_are_shown_in_their_place_and_without_secrets() -> None:
    text = page()
    assert "rows.jsonl row 5: github token ghp_… in the answer" in text
    assert "before it: What is number 3? → She says it is 3." in text
    assert "behind it: What is number 5? → She says it is 5." in text
    assert SECRET not in text
    assert "ann@example.org" not in text
    assert "<b>now</b>" not in Path("page.html").read_text()  # texts are escaped
    assert "rows.jsonl row 8, repeated 2 times" in text
    assert "by rows.jsonl row 10, rows.jsonl row 11" in text
    assert "tunesmith data check rows.jsonl --against 'held out.jsonl' --rows 20\n" in text
    assert "tunesmith data clean rows.jsonl --against 'held out.jsonl' --output clean.jsonl\n" in text
    assert "female (gender)" in text


def test_the_worst_rows_of_a_check_come_first() -> None:
    texts = ["ann@web.de", "bob@web.de <b>now</b>", "cy@web.de, dee@web.de", *(f"e{n}@web.de" for n in range(4))]
    lines = [json.dumps({"question": f"Who is {n}?", "answer": f"It is {text}"}) for n, text in enumerate(texts)]
    Path("rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    text = page("personal_data", "html")
    assert [text.index(f"rows.jsonl row {row}: email") for row in (3, 2, 1, 4, 5)] == sorted(
        text.index(f"rows.jsonl row {row}: email") for row in range(1, 6)
    )
    assert "rows.jsonl row 6: email" not in text
    assert "7 rows, the worst 5 of them here" in text


@pytest.mark.parametrize("characters", [120, 680])
def test_no_part_of_a_secret_is_shown_where_a_text_is_cut(characters: int) -> None:
    texts = ["What?", "x y z " * (characters // 6) + f" {SECRET} <b>now</b>\x00.", "Why?"]
    lines = [json.dumps({"question": text, "answer": "It is."}) for text in (*texts, "<b>what</b>")]
    Path("rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    text = page()
    assert SECRET[:6] not in text
    assert "\x00" not in text


def test_the_page_is_one_file_that_loads_nothing() -> None:
    text = page()
    assert "src=" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_page_of_clean_rows_says_so() -> None:
    assert "20 rows in 1 file. Nothing was found by 1 check." in page("prompt_injections")


def test_the_marks_of_a_check_stay_as_they_are() -> None:
    first = check_data("rows.jsonl")
    counts = {each.name: len(list(each.marks)) for each in first.results}
    page()
    again = check_data("rows.jsonl")
    assert again.cached
    assert {each.name: len(list(each.marks)) for each in again.results} == counts
    assert counts["exact_duplicates"] == 2


def test_rows_are_read_again_by_their_number() -> None:
    wanted = [Source("rows.jsonl", row) for row in (1, 16, 20, 21)]
    found = read_again(subject_of("rows.jsonl", []).files, wanted)
    assert {source.row: type(each).__name__ for source, each in found.items()} == {
        1: "Record",
        16: "Malformed",
        20: "Record",
    }
    assert isinstance(found[wanted[1]], Malformed)
