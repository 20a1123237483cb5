"""Checks of labels: planted mistakes are found, correct labels are left alone."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tunesmith.checks.confident_learning import suspects
from tunesmith.checks.driver import check_data

TOPICS = {
    "cards": "card pin chip contactless terminal payment limit blocked lost replaced".split(),
    "loans": "loan rate month mortgage house repay term interest credit offer".split(),
    "travel": "flight hotel abroad currency exchange visa border trip airport luggage".split(),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def texts(count: int, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)
    names = [draw.choice(list(TOPICS)) for _ in range(count)]
    return [
        {"text": " ".join(draw.choices(TOPICS[name], k=8)) + f" {n}", "label": name} for n, name in enumerate(names)
    ]


def write(rows: list[dict[str, str]]) -> str:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return "rows.jsonl"


@pytest.mark.parametrize(("check", "least"), [("suspicious_labels", 15), ("label_neighbors", 12)])
def test_planted_wrong_labels_are_found_and_no_others(check: str, least: int) -> None:
    rows = texts(300)
    wrong = random.Random(1).sample(range(300), 15)
    for row in wrong:
        rows[row]["label"] = next(name for name in TOPICS if name != rows[row]["label"])
    found = {mark.source.row - 1 for mark in check_data(write(rows))[check].marks}
    assert found <= set(wrong)
    assert len(found) >= least
    clean = check_data(write(texts(300, seed=2)))
    assert clean[check].count == 0


def test_a_suspect_is_off_the_diagonal_of_the_confident_joint() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.01, 0.99], [0.1, 0.9], [0.5, 0.5]], np.float32)
    assert suspects(probabilities, np.array([0, 0, 0, 1, 1])).tolist() == [-1, -1, 1, -1, -1]


def test_rare_classes_are_named_with_their_first_row() -> None:
    rows = [{"text": f"text {number} of many", "label": "usual"} for number in range(60)]
    rows[7]["label"], rows[30]["label"] = "rare", "rare"
    (mark,) = check_data(write(rows))["label_imbalance"].marks
    assert (mark.source.row, "'rare' has 2 of 60 rows" in mark.detail) == (8, True)
    rows = [{"text": f"text {number} of many", "label": "ab"[number % 2]} for number in range(60)]
    assert check_data(write(rows))["label_imbalance"].count == 0


def test_answers_are_no_labels() -> None:
    rows = [{"question": f"What is {number}?", "answer": "A number."} for number in range(20)]
    found = check_data(write(rows))
    assert "suspicious_labels" not in found
    assert "label_imbalance" not in found
