"""Human feedback in another form: every row is counted, and what is written is read back by its format."""

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config.data import Data
from tunesmith.data.convert import convert
from tunesmith.data.example import Example
from tunesmith.data.examples import examples
from tunesmith.data.report import DataReport
from tunesmith.errors import UserError

RANKINGS = [
    {"prompt": "p", "completions": ["a", "b", "c"], "scores": [2, 1, 4]},
    {"prompt": "q", "completions": ["d", "e"], "scores": [1, 1]},
]
PAIRS = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "c", "rejected": "d", "tie": True}]
RATINGS = [
    {"prompt": "p", "completion": text, "label": label}
    for text, label in (("a", True), ("b", False), ("c", True), ("d", False))
] + [{"prompt": "q", "completion": "e", "label": True}]


def converted(rows: list[dict[str, Any]], to: Any, directory: Path, **options: Any) -> tuple[Any, list[Example]]:
    source, target = directory / "rows.jsonl", directory / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = convert(str(source), to, target, **options)
    formats = {"pairs": ("preference",), "rankings": ("ranking",), "ratings": ("rating",), "examples": ()}[to]
    return found, list(examples(Data(train=[str(target)]), formats, [str(target)], DataReport()))


def shown(rows: list[Example]) -> list[Any]:
    """Each row's prompt, answers and scores."""
    return [
        (row.messages[0]["content"], *((each.messages[0]["content"], each.score) for each in row.completions))
        for row in rows
        if row.messages
    ]


def test_pairs_of_a_ranking_have_their_margins_and_equal_scores_are_left_out(tmp_path: Path) -> None:
    found, rows = converted(RANKINGS, "pairs", tmp_path)
    assert shown(rows) == [
        ("p", ("c", 2.0), ("a", 0.0)),
        ("p", ("c", 3.0), ("b", 0.0)),
        ("p", ("a", 1.0), ("b", 0.0)),
    ]
    assert (found.rows, dict(found.written)) == (2, {"pairs": 3})
    assert str(found.left_out[0]).endswith("rows.jsonl row 2: no answer to its prompt is better than another")


def test_the_best_and_the_worst_make_one_pair(tmp_path: Path) -> None:
    _, rows = converted(RANKINGS, "pairs", tmp_path, pairs="best_and_worst")
    assert shown(rows) == [("p", ("c", 3.0), ("b", 0.0))]


def test_ratings_of_one_prompt_make_pairs_and_rankings(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    found, rows = converted(RATINGS, "pairs", tmp_path)
    assert [(row[1][0], row[2][0]) for row in shown(rows)] == [("a", "b"), ("a", "d"), ("c", "b"), ("c", "d")]
    assert found.left_out[0].rows == 1, "one answer alone is no pair"
    _, ranked = converted(RATINGS, "rankings", tmp_path / "r")
    assert shown(ranked) == [("p", ("a", 1.0), ("c", 1.0), ("b", 0.0), ("d", 0.0))]


def test_pairs_become_ratings_and_examples_without_ties(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    found, rows = converted(PAIRS, "ratings", tmp_path)
    assert shown(rows) == [("p", ("a", 1.0)), ("p", ("b", 0.0))]
    assert dict(found.written) == {"good": 1, "bad": 1}
    assert found.left_out[0].rows == 1
    _, chosen = converted(PAIRS, "examples", tmp_path / "e")
    assert [[turn["content"] for turn in row.messages or ()] for row in chosen] == [["p", "a"]]


def test_answers_between_are_counted_and_only_good_ratings_are_examples(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    found, _ = converted(RANKINGS[:1], "ratings", tmp_path)
    assert "an answer between the best and the worst" in str(found.left_out[0])
    _, chosen = converted(RATINGS, "examples", tmp_path / "e")
    assert [[turn["content"] for turn in row.messages or ()][-1] for row in chosen] == ["a", "c", "e"]


def test_nothing_is_written_where_nothing_is_left_or_something_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No pairs can be made of these 1 rows: .*is better than another"):
        converted(PAIRS[1:], "pairs", tmp_path)
    assert not (tmp_path / "out.jsonl").exists()
    (tmp_path / "out.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="already exists"):
        converted(PAIRS, "ratings", tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="these rows are in the format question_answer; what can be converted is pairs"):
        converted([{"question": "a", "answer": "b"}], "pairs", tmp_path / "other")
