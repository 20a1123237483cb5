"""The confusion matrix and the reliability diagram of a classifier."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from tunesmith.evaluation.classification import calibration_error_by_chance, confusion_matrix, reliability
from tunesmith.metrics.prediction_metrics import PREDICTION_METRICS, Predictions


def predictions(probabilities: Any, targets: Any, labels: str = "abc") -> Predictions:
    rows = [np.asarray(row, np.float32)[None] for row in probabilities]
    return Predictions(rows, [np.array([[target]], np.float32) for target in targets], tuple(labels))


def drawn(rows: int, calibrated: bool) -> Predictions:
    """Of two classes. A text is of the first class as often as predicted, or always as if by a coin."""
    draw = np.random.default_rng(0)
    first = draw.uniform(0.5, 1.0, rows)
    targets = draw.random(rows) > (first if calibrated else 0.5)
    return predictions(np.stack([first, 1 - first], 1), targets, "ab")


def test_confusion_matrix_equals_scikit_learn_and_has_classes_that_never_occur() -> None:
    draw = np.random.default_rng(1)
    probabilities, targets = draw.dirichlet([1, 1, 1], 50), draw.integers(0, 3, 50)
    theirs = sklearn_confusion_matrix(targets, probabilities.argmax(1), labels=[0, 1, 2, 3])
    assert np.array_equal(confusion_matrix(predictions(probabilities, targets, "abcd")), theirs)


def test_reliability_bins_equal_scikit_learn_and_give_the_calibration_error() -> None:
    found = drawn(400, calibrated=False)
    bins = reliability(found)
    confidence = np.concatenate(found.outputs).max(1).astype(np.float64)
    correct = np.concatenate(found.outputs).argmax(1) == np.concatenate(found.targets)[:, 0]
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    assert [each.accuracy for each in bins] == pytest.approx(accuracy)
    assert [each.confidence for each in bins] == pytest.approx(mean)
    error = sum(each.rows * abs(each.accuracy - each.confidence) for each in bins) / 400
    assert PREDICTION_METRICS["calibration_error"].of(found)(np.arange(400)) == pytest.approx(error)
    theirs = binomtest(round(bins[0].accuracy * bins[0].rows), bins[0].rows).proportion_ci(method="wilson")
    assert bins[0].interval == pytest.approx((theirs.low, theirs.high))
    assert all(each.low <= each.confidence <= each.high for each in bins)


def test_chance_alone_explains_the_error_of_calibrated_predictions_only() -> None:
    for calibrated in (True, False):
        found = drawn(100, calibrated)
        error = PREDICTION_METRICS["calibration_error"].of(found)(np.arange(100))
        mean, high = calibration_error_by_chance(found)
        assert 0.04 < mean < high
        assert (error < high) == calibrated
    few, many = (calibration_error_by_chance(drawn(rows, True))[0] for rows in (100, 2000))
    assert many < few / 3, "noise shrinks with rows"
