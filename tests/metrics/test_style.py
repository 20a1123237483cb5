"""The share of answers in a style, with the classifier's own error rate."""

import json
from pathlib import Path

import numpy as np
import pytest

from tunesmith.errors import UserError
from tunesmith.metrics import metric_named
from tunesmith.metrics.metric import Case, measured, scores
from tunesmith.metrics.style import StyleClassifier
from tunesmith.statistics.intervals import estimate

THINGS = "invoice order parcel refund account password address delivery contract receipt".split()
FORMAL = [
    f"Dear customer, we have received your {thing} and will reply within {n} days."
    for n in (2, 3, 5)
    for thing in THINGS
]
CASUAL = [f"hey!! got ur {thing}, gonna sort it in like {n} days :)" for n in (2, 3, 5) for thing in THINGS]


def write(path: Path, formal: list[str], casual: list[str]) -> Path:
    rows = [{"text": text, "in_style": True} for text in formal] + [
        {"text": text, "in_style": False} for text in casual
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def share(file: Path, *answers: str) -> tuple[float, tuple[float, float]]:
    cases = [Case(str(row), "", answer, "") for row, answer in enumerate(answers)]
    return estimate(measured({"style": metric_named(f"style:{file.name}", file.parent)}, cases)["style"])


def test_answers_in_the_style_are_told_from_others_on_new_subjects(tmp_path: Path) -> None:
    file = write(tmp_path / "house.jsonl", FORMAL, CASUAL)
    formal = "Dear customer, we have received your complaint and will answer it shortly."
    casual = "yo! saw ur complaint, gonna answer it soon :)"
    assert share(file, *[formal] * 3, casual, "")[0] == pytest.approx(3 / 5)
    metric = metric_named(f"style:{file.name}", tmp_path)
    assert scores(metric, [formal, casual, ""], ["", "", ""]).tolist() == [1, 0, 0]


def test_the_explanation_has_the_error_rates_of_cross_validation(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    noisy = [draw.choice([formal, casual], p=[0.8, 0.2]) for formal, casual in zip(FORMAL, CASUAL, strict=True)]
    file = write(tmp_path / "noisy.jsonl", [str(text) for text in noisy], CASUAL)
    explanation = metric_named(f"style:{file.name}", tmp_path).explanation
    classifier = StyleClassifier.trained([str(text) for text in noisy], CASUAL)
    assert classifier.found < 1
    assert f"finds {classifier.found:.0%} (" in explanation
    assert f"mistakes {classifier.mistaken:.0%} (" in explanation


def test_the_share_is_corrected_by_the_error_rates() -> None:
    """Rogan & Gladen 1978: (apparent + specificity − 1) / (sensitivity + specificity − 1)."""
    classifier = StyleClassifier(None, 0.9, 0.2, (50, 50))
    assert classifier.corrected(0.55) == pytest.approx((0.55 + 0.8 - 1) / (0.9 + 0.8 - 1))
    assert (classifier.corrected(0.1), classifier.corrected(0.95)) == (0.0, 1.0)


def test_examples_that_are_too_few_wrong_or_alike_are_refused(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", FORMAL, CASUAL[:4])
    alike = write(tmp_path / "alike.jsonl", FORMAL, FORMAL)
    (tmp_path / "wrong.jsonl").write_text('{"text": "a", "in_style": true}\n{"text": "a", "style": 1}\n')
    for file, message in (
        (few, "has 30 texts with in_style true and 4 with false. Give at least 10 of each"),
        (alike, "does not know the style"),
        (tmp_path / "wrong.jsonl", r"wrong.jsonl row 2 is not of the form"),
        (tmp_path / "absent.jsonl", "needs JSONL rows of text and in_style"),
    ):
        with pytest.raises(UserError, match=message):
            metric_named(f"style:{file.name}", tmp_path)
