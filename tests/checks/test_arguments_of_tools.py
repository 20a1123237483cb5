"""Checks look at the arguments of tool calls and at reasoning, and cleaning changes them, however a row has them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.checks.driver import check_data
from tunesmith.checks.mask import find_sensitive, mask
from tunesmith.checks.nested import named_texts, with_changed_texts
from tunesmith.curation.clean import data_clean
from tunesmith.data.read import read

Arguments = dict[str, Any]
PLAIN: Arguments = {"city": "Paris"}


def as_object(arguments: Arguments) -> list[dict[str, Any]]:
    function = {"name": "send", "arguments": arguments}
    return [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}]


def as_json(arguments: Arguments) -> list[dict[str, Any]]:
    function = {"name": "send", "arguments": json.dumps(arguments)}
    return [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}]


def as_share_gpt(arguments: Arguments) -> list[dict[str, Any]]:
    return [{"from": "function_call", "value": json.dumps({"name": "send", "arguments": arguments})}]


def in_a_part(arguments: Arguments) -> list[dict[str, Any]]:
    call = json.dumps({"name": "send", "arguments": arguments})
    return [{"role": "assistant", "content": [{"type": "tool_call", "value": call}]}]


WAYS = (as_object, as_json, as_share_gpt, in_a_part)
Way = Callable[[Arguments], list[dict[str, Any]]]


def rows_of(path: Path, way: Way, *calls: Arguments, prompt: str = "Do it, please.") -> Path:
    names = ("from", "value") if way is as_share_gpt else ("role", "content")
    first = {names[0]: "human" if way is as_share_gpt else "user", names[1]: prompt}
    column = "conversations" if way is as_share_gpt else "messages"
    path.write_text("".join(json.dumps({column: [first, *way(each)]}) + "\n" for each in calls), encoding="utf-8")
    return path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("arguments", "check", "left"),
    [
        ({"to": "Hello\nann@web.de"}, "personal_data", "ann@web.de"),
        ({"phone": "0151 23456789"}, "personal_data", "23456789"),
        ({"cards": [{"number": 4111111111111111}]}, "personal_data", "4111111111111111"),
        ({"password": "Winter2026!"}, "secrets", "Winter2026"),
        ({"text": "It is schÃ¶n and warm there."}, "encoding", "Ã"),
    ],
)
def test_what_is_found_in_an_argument_is_marked_and_changed(
    way: Way, arguments: Arguments, check: str, left: str, tmp_path: Path
) -> None:
    path = rows_of(tmp_path / "rows.jsonl", way, {**PLAIN, **arguments}, PLAIN)
    (mark,) = check_data(path, only=[check])[check].marks
    assert mark.source.row == 1
    assert "in the argument" in mark.detail
    cleaned = data_clean(path, tmp_path / "clean.jsonl", actions={"exact_duplicates": "keep"}).file
    assert left not in json.dumps([row.values for row in read([str(cleaned)], Path.cwd())], ensure_ascii=False)
    again = check_data(cleaned)
    assert (again["malformed"].count, again[check].count) == (0, 0)
    assert cleaned.read_bytes().splitlines()[1] == path.read_bytes().splitlines()[1]


def test_rows_that_call_with_other_arguments_are_no_duplicates_but_contradict(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "rows.jsonl", as_object, PLAIN, {"city": "Rome"}, PLAIN)
    found = check_data(path, only=["exact_duplicates", "contradictions"])
    assert [mark.source.row for mark in found["exact_duplicates"].marks] == [3]
    assert [mark.source.row for mark in found["contradictions"].marks] == [2]


def test_the_language_of_a_call_is_that_of_its_sentences(tmp_path: Path) -> None:
    english = [{"city": "Roma", "text": f"Thank you for the letter, we will answer it by day {n}."} for n in range(3)]
    german = {"city": "Roma", "text": "Vielen Dank für Ihren Brief, wir antworten Ihnen bald."}
    path = rows_of(tmp_path / "rows.jsonl", as_json, *english, german, {"city": "Roma e Milano"})
    assert [mark.source.row for mark in check_data(path, only=["wrong_language"])["wrong_language"].marks] == [4]


def test_an_answer_that_goes_on_with_a_call_is_not_cut(tmp_path: Path) -> None:
    whole = [{"question": f"What about {n} of them?", "answer": f"There are {n} of them here now."} for n in range(9)]
    call = as_object(PLAIN)[0] | {"content": "I look up the weather of the city for you with the"}
    last = {"messages": [{"role": "user", "content": "Is it warm?"}, call]}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in whole), encoding="utf-8")
    (tmp_path / "calls.jsonl").write_text(json.dumps(last) + "\n", encoding="utf-8")
    found = check_data([path, tmp_path / "calls.jsonl"], only=["truncated_answers"])
    assert found["truncated_answers"].count == 0


def test_reasoning_is_looked_at(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "Done.", "reasoning_content": "He is ann@web.de, I know him."}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Who?"}, answer]}) + "\n", encoding="utf-8")
    (mark,) = check_data(path, only=["personal_data"])["personal_data"].marks
    assert "in the reasoning" in mark.detail
    assert b"ann@web.de" not in data_clean(path, tmp_path / "clean.jsonl").file.read_bytes()


def test_numbers_outside_of_calls_and_short_ones_stay() -> None:
    row = {"id": 4111111111111111, "messages": [{"arguments": {"number": 12, "ok": True, "none": None}}]}
    assert mask(row).value == row


def test_a_text_in_json_stays_json_and_nothing_is_left_to_find() -> None:
    text = json.dumps({"mail": "first\nann@web.de", "phone": 491512345678, "key": ["password: Winter2026!"]})
    masked = mask(text).value
    assert set(json.loads(masked)) == {"mail", "phone", "key"}
    assert find_sensitive(masked) == []
    assert mask(masked).value == masked


def test_unchanged_json_keeps_its_bytes() -> None:
    text = '{ "a":1,\n"b": "x" }'
    assert with_changed_texts({"arguments": text}, lambda text, name: text) == {"arguments": text}


def test_names_are_the_nearest_keys() -> None:
    value = {"a": ["x", {"b": "y"}], "c": {"d": 123456, "e": 1, "f": True, "g": ""}}
    assert list(named_texts(value)) == [("a", "x"), ("b", "y"), ("d", "123456")]
