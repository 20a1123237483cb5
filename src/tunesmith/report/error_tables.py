"""A classifier's errors for the page: its confusion matrix, or its most frequent confusions, and how reliable it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.report.charts import Line, line_chart

MATRIX_LABELS = 12
"""A matrix of more labels does not fit the page; its most frequent confusions are listed."""

CONFUSIONS = 10
"""Of those, how many."""


@dataclass(frozen=True, slots=True)
class ErrorTables:
    """One model's errors.

    Attributes:
        model: its column.
        labels: of the matrix, in order; empty if there are too many.
        matrix: by target: its label, and of each prediction the count and its share of the target's texts.
        confusions: target, prediction and count of the most frequent errors; empty beside a matrix.
        chart: the reliability diagram, as SVG.
        by_chance: the calibration error that calibrated predictions would show, in a sentence.
    """

    model: str
    labels: list[str]
    matrix: list[tuple[str, list[tuple[int, float]]]]
    confusions: list[tuple[str, str, int]]
    chart: str
    by_chance: str


def error_tables(result: Mapping[str, Any]) -> list[ErrorTables]:
    """Each model's errors.

    Args:
        result: the content of `evaluation.json`.

    Returns:
        By model; none if the models predict something else than one class for each text.
    """
    return [_of_model(model, found) for model, found in (result.get("classification") or {}).items()]


def _of_model(model: str, found: Mapping[str, Any]) -> ErrorTables:
    labels, counts = [str(label) for label in found["labels"]], found["confusion"]
    is_small = len(labels) <= MATRIX_LABELS
    matrix = [
        (label, [(count, count / max(1, sum(row))) for count in row])
        for label, row in zip(labels, counts, strict=True)
        if is_small
    ]
    errors = sorted(
        (-count, target, prediction)
        for target, row in enumerate(counts)
        for prediction, count in enumerate(row)
        if target != prediction and count and not is_small
    )
    confusions = [(labels[target], labels[prediction], -count) for count, target, prediction in errors[:CONFUSIONS]]
    mean, high = found["calibration_by_chance"]
    return ErrorTables(
        model,
        labels if is_small else [],
        matrix,
        confusions,
        _diagram(model, found["reliability"]),
        f"On so few rows, calibrated predictions have a calibration error of {mean:.1%}, and above {high:.1%} in 5 %.",
    )


def _diagram(model: str, bins: list[dict[str, Any]]) -> str:
    """Accuracy by confidence, in percent, beside the line on which both are equal."""
    points = [(100 * each["confidence"], 100 * each["accuracy"]) for each in bins]
    intervals = [(100 * each["interval"][0], 100 * each["interval"][1]) for each in bins]
    lines = [
        Line("as often right as predicted", [(0.0, 0.0), (100.0, 100.0)], "raw"),
        Line(model, points, "smooth", intervals, dots=True),
    ]
    return line_chart(f"Reliability of {model}", "confidence (%)", "right (%)", lines, from_zero=True)
