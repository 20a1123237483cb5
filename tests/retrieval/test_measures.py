"""Questions with known passages: what is measured on them, and what is tuned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

import tunesmith
from tunesmith.errors import UserError
from tunesmith.retrieval.measures import measure, ndcg, recall, reciprocal_rank, scored
from tunesmith.retrieval.questions import read_questions, relevant_chunks
from tunesmith.retrieval.ranking import WAYS
from tunesmith.retrieval.search import Index
from tunesmith.retrieval.tuning import WEIGHTS, measure_questions, tune

COUNT = 40


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def index(reading: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    directory = tmp_path_factory.mktemp("documents")
    text = "".join(f"# H{n}\n\nw{n} w{n * 3 % 17} good.\n\n" for n in range(COUNT))
    (directory / "a.md").write_text(text, encoding="utf-8")
    (directory / "b.md").write_text("film w7", encoding="utf-8")
    tunesmith.index(directory, directory / "index", str(reading / "vectors"))
    return Index(directory / "index")


def passages(count: int = COUNT) -> list[dict[str, Any]]:
    return [
        {"question": f"Where is w{n}, good?", "file": "a.md", "lines": [4 * n + 3, 4 * n + 3]} for n in range(count)
    ]


@given(st.permutations(range(12)), st.sets(st.integers(0, 11), min_size=1), st.integers(1, 12))
@settings(max_examples=50)
def test_ndcg_is_scikit_learns(order: list[int], relevant: set[int], k: int) -> None:
    scores = np.zeros(12)
    scores[order] = np.arange(12, 0, -1)
    expected = ndcg_score([[chunk in relevant for chunk in range(12)]], [scores], k=k)
    assert ndcg(order, relevant, k) == pytest.approx(expected)


def test_recall_and_reciprocal_rank_are_those_computed_by_hand() -> None:
    assert recall([4, 2, 7], {2, 9}, 2) == 0.5
    assert recall([4, 2, 7], {2, 7, 9}, 2) == 0.5, "no more than k can be found"
    assert reciprocal_rank([4, 2, 7], {7, 2}) == 0.5
    assert reciprocal_rank([4], {1}) == 0


def test_each_form_of_a_row_names_its_chunks(index: Index, tmp_path: Path) -> None:
    rows = [
        {"question": "a", "file": "a.md", "lines": [3, 9]},
        {"question": "b", "file": "b.md"},
        {"question": "c", "text": "FILM  w7"},
        {"question": "d", "relevant": [{"file": "b.md"}, {"text": "w1 w3 good."}]},
        {"question": "e", "file": None},
        {"question": "f", "relevant": []},
    ]
    questions = read_questions(write(tmp_path / "q.jsonl", rows))
    chunks = [sorted(each) for each in relevant_chunks(index.version, questions)]
    assert chunks == [[0, 1], [COUNT], [COUNT], [1, COUNT], [], []]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file": "a.md"}, r"q\.jsonl row 2: not a question with its passage\. Write"),
        ({"question": "x"}, "not a question with its passage"),
        ({"question": "x", "file": "a.md", "lines": 3}, "not a question with its passage"),
        ({"question": " ", "file": "a.md"}, "the question is empty"),
        ({"question": "x", "file": "z.md"}, r"row 2: no chunk of the index holds its passage \(z\.md\)"),
        ({"question": "x", "file": "b.md", "lines": [9, 9]}, r"holds its passage \(b\.md, lines \[9, 9\]\)"),
    ],
)
def test_a_row_that_names_no_passage_is_refused(
    row: dict[str, Any], message: str, index: Index, tmp_path: Path
) -> None:
    file = write(tmp_path / "q.jsonl", [*passages(1), row])
    with pytest.raises(UserError, match=message):
        measure_questions(index, file)


def test_files_without_questions_or_answers_are_refused(index: Index, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        measure_questions(index, tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="has no questions"):
        measure_questions(index, write(tmp_path / "q.jsonl", []))
    with pytest.raises(UserError, match="nothing to measure"):
        measure_questions(index, write(tmp_path / "q.jsonl", [{"question": "x", "file": None}]))
    with pytest.raises(UserError, match=r"too few questions to tune: \d with a passage in one half"):
        tune(index, write(tmp_path / "q.jsonl", passages(12)))


def test_every_way_is_measured_by_what_search_finds(index: Index, tmp_path: Path) -> None:
    result = measure_questions(index, write(tmp_path / "q.jsonl", [*passages(), {"question": "x", "file": None}]), k=3)
    assert result["rows"] == COUNT
    assert list(result["models"]) == list(WAYS)
    questions = [row["question"] for row in passages()]
    for way in WAYS:
        found = [[hit.chunk for hit in index.search(question, 3, way)] for question in questions]
        expected = np.mean([n in chunks for n, chunks in enumerate(found)])
        assert result["models"][way]["recall"]["value"] == pytest.approx(expected)
    assert set(result["differences"]) == set(WAYS) - {"text"}


def test_what_is_chosen_on_one_half_is_the_best_there_and_measured_on_the_other(index: Index, tmp_path: Path) -> None:
    nowhere = [{"question": f"zebra {n}", "file": None} for n in range(20)]
    file = write(tmp_path / "q.jsonl", [*passages(), *nowhere])
    result = tune(index, file, k=3)
    rows = scored(index, read_questions(file))
    half = [row for row in rows if row.question.is_development and row.relevant]

    def quality(way: str, weight: float) -> float:
        return float(np.mean([ndcg(row.order(way, weight).tolist(), row.relevant, 3) for row in half]))

    tuned = Index(index.path).tuned
    assert tuned is not None
    others = [quality(way, 0.8) for way in WAYS] + [quality("weighted", weight) for weight in WEIGHTS]
    assert quality(tuned.mode, tuned.weight) == pytest.approx(max(others))
    assert (
        tuned.questions + result["rows"] + sum(not row.question.is_development and not row.relevant for row in rows)
        == 60
    )
    assert Index(index.path).way() == tuned.mode
    assert Index(index.path).threshold == tuned.threshold == result["tuned"]["threshold"]
    errors = result["tuned"]["threshold_errors"]
    assert 0 <= errors["missed"] <= 1
    assert 0 <= errors["wrongly_found"] <= 1
    (index.path / "tuned.json").unlink()


def test_a_threshold_parts_questions_with_an_answer_from_those_without(reading: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    text = "".join(f"# H{n}\n\nw{n} good.\n\n" for n in range(COUNT))
    (tmp_path / "docs" / "a.md").write_text(text, encoding="utf-8")
    tunesmith.index(tmp_path / "docs", tmp_path / "i", "none")
    nowhere = [{"question": f"zebra w{n} lion tiger good", "file": None} for n in range(COUNT)]
    for others, wrong in ((nowhere, 0.0), ([], None)):
        result = tune(tmp_path / "i", write(tmp_path / "q.jsonl", [*passages(), *others]))["tuned"]
        assert result["mode"] == "text"
        assert 0.2 < result["threshold"] < 0.6
        assert result["threshold_errors"] == {"missed": 0.0, "wrongly_found": wrong}


def test_measures_have_intervals_and_compare_with_the_first_way(index: Index, tmp_path: Path) -> None:
    rows = scored(index, read_questions(write(tmp_path / "q.jsonl", passages())))
    result = measure(rows, {"a": ("text", 0.8), "b": ("dense", 0.8)}, 5, "questions")
    low, high = result["models"]["a"]["recall"]["interval"]
    assert 0 <= low <= result["models"]["a"]["recall"]["value"] <= high <= 1
    assert result["reference"] == "a"
    assert result["differences"]["b"]["recall"]["rows"] == COUNT
