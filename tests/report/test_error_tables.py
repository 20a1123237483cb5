"""A classifier's page shows its confusion matrix, or its most frequent confusions, and a reliability diagram."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.evaluation.classification import error_tables as tables_of
from tunesmith.metrics.prediction_metrics import Predictions
from tunesmith.report.error_tables import CONFUSIONS, MATRIX_LABELS, error_tables
from tunesmith.report.html import write_evaluation_page


def predicted(pairs: list[tuple[int, int]], labels: int, confidence: float = 0.8) -> Predictions:
    """Of pairs of a target and a prediction."""
    rest = (1 - confidence) / (labels - 1)
    outputs = [np.full((1, labels), rest, np.float32) for _ in pairs]
    for row, (_, prediction) in zip(outputs, pairs, strict=True):
        row[0, prediction] = confidence
    targets = [np.array([[target]], np.float32) for target, _ in pairs]
    return Predictions(outputs, targets, tuple(f"<{number}>" for number in range(labels)))


PAIRS = [(0, 0)] * 6 + [(0, 1)] * 2 + [(1, 1)] * 4


def result(labels: int) -> dict[str, Any]:
    return {"rows": 12, "models": {}, "figures": {}, "classification": {"tuned": tables_of(predicted(PAIRS, labels))}}


def test_a_few_labels_have_a_matrix_of_counts_and_shares() -> None:
    (found,) = error_tables(result(3))
    assert found.matrix == [("<0>", [(6, 0.75), (2, 0.25), (0, 0.0)]), ("<1>", [(0, 0.0), (4, 1.0), (0, 0.0)]),
                            ("<2>", [(0, 0.0)] * 3)]  # fmt: skip
    assert (found.model, found.confusions) == ("tuned", [])
    assert "tuned: 83.33 at confidence (%) 80" in found.chart
    chance = tables_of(predicted(PAIRS, 3))["calibration_by_chance"]
    assert f"calibration error of {chance[0]:.1%}" in found.by_chance


def test_many_labels_have_their_most_frequent_confusions() -> None:
    pairs = [(0, 1)] * 3 + [(2, 0)] * 5 + [(number, number) for number in range(MATRIX_LABELS + 1)]
    found = {"classification": {"tuned": tables_of(predicted(pairs, MATRIX_LABELS + 1))}}
    (tables,) = error_tables(found)
    assert (tables.labels, tables.matrix) == ([], [])
    assert tables.confusions == [("<2>", "<0>", 5), ("<0>", "<1>", 3)]
    everything = [(0, number) for number in range(1, MATRIX_LABELS + 1)]
    (most,) = error_tables({"classification": {"tuned": tables_of(predicted(everything, MATRIX_LABELS + 1))}})
    assert len(most.confusions) == CONFUSIONS


@pytest.mark.parametrize("labels", [3, MATRIX_LABELS + 1])
def test_the_page_shows_the_errors_and_escapes_labels(labels: int, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(result(labels)), encoding="utf-8")
    page = write_evaluation_page(tmp_path).read_text(encoding="utf-8")
    assert ("Confusions of tuned" in page, "Most frequent confusions of tuned" in page) == (labels == 3, labels != 3)
    assert re.search(r"&lt;0&gt;</t[hd]>", page)
    assert "<0>" not in page
    assert "Reliability of tuned" in page


def test_what_predicts_no_classes_has_none() -> None:
    assert error_tables({"classification": None}) == error_tables({}) == []
