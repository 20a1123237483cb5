"""Tables of a classifier's errors: the confusion matrix, and the reliability diagram beside what chance shows."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.metrics.prediction_metrics import BINS, Predictions, calibration, classes_of
from tunesmith.statistics.bootstrap import Interval
from tunesmith.statistics.intervals import wilson

SIMULATIONS = 1000


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bar of a reliability diagram.

    Attributes:
        low, high: the confidences of the bin.
        rows: how many predictions are in it.
        confidence: their mean confidence.
        accuracy: the share of them that are correct.
        interval: of the accuracy, Wilson's.
    """

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float
    interval: Interval


def confusion_matrix(predictions: Predictions) -> NDArray[np.int64]:
    """How often each class was predicted for texts of each class.

    Args:
        predictions: of one class for each text.

    Returns:
        (labels, labels) counts: target by row, prediction by column, in the order of the labels.
    """
    predicted, _, targets = classes_of(predictions)
    size = max(len(predictions.labels), int(predicted.max()) + 1, int(targets.max()) + 1)
    return np.bincount(targets * size + predicted, minlength=size * size).reshape(size, size)


def reliability(predictions: Predictions) -> list[ReliabilityBin]:
    """The reliability diagram (Guo et al. 2017, figure 1): accuracy by confidence, which should be equal.

    Args:
        predictions: of one class for each text.

    Returns:
        The bins that have predictions, from low to high confidence.
    """
    predicted, confidence, targets = classes_of(predictions)
    correct = predicted == targets
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    found = []
    for index in np.unique(bins).tolist():
        inside = bins == index
        rows, accuracy = int(inside.sum()), float(correct[inside].mean())
        ends = wilson(accuracy, rows)
        mean = float(confidence[inside].mean())
        found.append(ReliabilityBin(index / BINS, (index + 1) / BINS, rows, mean, accuracy, ends))
    return found


def calibration_error_by_chance(predictions: Predictions) -> tuple[float, float]:
    """The calibration error that perfectly calibrated predictions with these confidences show on so few rows.

    The expected calibration error is never below 0, so that noise only adds to it. This simulates targets that are
    correct with exactly the predicted confidence (consistency resampling, Bröcker & Smith 2007).

    Args:
        predictions: of one class for each text.

    Returns:
        The mean over simulations, and the value that 5 % of them exceed: an error above it is a real one.
    """
    _, confidence, _ = classes_of(predictions)
    draw, rows = np.random.default_rng(0), np.arange(len(confidence))
    errors = [calibration(confidence, draw.random(len(rows)) < confidence)(rows) for _ in range(SIMULATIONS)]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def error_tables(predictions: Predictions) -> dict[str, Any]:
    """The tables of one model's errors as plain values, for `evaluation.json`.

    Args:
        predictions: of one class for each text.

    Returns:
        `labels`; `confusion`: counts by target, then by prediction; `reliability`: the bins; `calibration_by_chance`:
        the calibration error that perfectly calibrated predictions show, on average and in 5 % of cases at least.
    """
    return {
        "labels": list(predictions.labels),
        "confusion": confusion_matrix(predictions).tolist(),
        "reliability": [asdict(each) for each in reliability(predictions)],
        "calibration_by_chance": calibration_error_by_chance(predictions),
    }
