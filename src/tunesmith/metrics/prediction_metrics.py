"""Metrics of a model's predictions for held-out texts, each computed over all rows together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.heads.sequence_classification import THRESHOLD
from tunesmith.heads.token_classification import spans_of

Rows = NDArray[np.int64]
Figure = Callable[[Rows], float]
"""Maps row indices to a metric's value over these rows. Rows may repeat, as in a bootstrap resample."""

CLOSE = 1e-6
"""Cosine similarities that differ by less than this count as equal."""

BINS = 15
"""The number of confidence bins, as in Guo et al. (2017)."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """A model's outputs for some rows, with the targets.

    Attributes:
        outputs: per row (positions, outputs): probabilities, values, or the vectors of its texts.
        targets: per row (positions, values): the correct class, labels, value or tags; no values for embeddings.
        labels: the names of the outputs.
        models: per row, the index of the model that made the prediction; vectors of different models are not compared.
            Empty if there is one model.
    """

    outputs: Sequence[NDArray[np.float32]]
    targets: Sequence[NDArray[np.float32]]
    labels: tuple[str, ...]
    models: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class PredictionMetric:
    """A metric over all rows together.

    Attributes:
        title: its name in tables.
        explanation: an explanation for readers who do not know it.
        better: 1 if higher is better, −1 if lower is better.
        of: maps predictions to a function that computes the metric over any rows.
        unit: `%` for a share, empty otherwise.
        of_hits: whether it is the share of rows that are correct, each row being either correct or not.
    """

    title: str
    explanation: str
    better: int
    of: Callable[[Predictions], Figure]
    unit: Literal["%", ""] = "%"
    of_hits: bool = False


def classes_of(predictions: Predictions) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """The predicted and the correct class of each text.

    Args:
        predictions: of one class for each text.

    Returns:
        (rows,) each: the predicted class, its probability, the target class.
    """
    probabilities = np.concatenate(predictions.outputs).astype(np.float64)
    targets = np.concatenate(predictions.targets)[:, 0].astype(np.int64)
    return probabilities.argmax(1), probabilities.max(1), targets


def accuracy(predictions: Predictions) -> Figure:
    predicted, _, targets = classes_of(predictions)
    hits = (predicted == targets).astype(np.float64)
    return lambda rows: float(hits[rows].mean())


def macro_f1(predictions: Predictions) -> Figure:
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that occur among predictions or targets."""
    all_predicted, _, all_targets = classes_of(predictions)
    classes = int(max(all_predicted.max(), all_targets.max())) + 1

    def value(rows: Rows) -> float:
        predicted, targets = all_predicted[rows], all_targets[rows]
        counts = np.bincount(predicted, minlength=classes) + np.bincount(targets, minlength=classes)  # 2 TP + FP + FN
        hits = np.bincount(predicted[predicted == targets], minlength=classes)
        return float(np.mean(2 * hits[counts > 0] / counts[counts > 0]))

    return value


def calibration_error(predictions: Predictions) -> Figure:
    """Expected calibration error (Guo et al. 2017, eq. 3): Σ share of bin · |accuracy − mean confidence| in it."""
    predicted, confidence, targets = classes_of(predictions)
    return calibration(confidence, predicted == targets)


def calibration(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> Figure:
    """The expected calibration error, in fifteen bins of equal width.

    Args:
        confidence: (rows,) or (rows, labels), the probability of each prediction.
        correct: of the same shape.

    Returns:
        Maps rows to the error.
    """
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = confidence - correct
    return lambda rows: float(np.abs(np.bincount(bins[rows].ravel(), gaps[rows].ravel())).sum() / gaps[rows].size)


def pair_calibration_error(predictions: Predictions) -> Figure:
    """`calibration_error` of σ(rᵢ − rⱼ) as the probability that completion i of a row is better than j (Bradley & Terry
    1952), over each row's pairs without ties."""
    counts = np.array([len(targets) for targets in predictions.targets])
    parts = [_pair_gaps(predictions, np.flatnonzero(counts == count)) for count in np.unique(counts)]
    row_of, confidence, gaps = (np.concatenate(each) for each in zip(*parts, strict=True))
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)

    def value(rows: Rows) -> float:
        weights = np.bincount(rows, minlength=len(counts))[row_of]
        return float(np.abs(np.bincount(bins, weights * gaps)).sum() / weights.sum()) if weights.any() else 0.0

    return value


def _pair_gaps(predictions: Predictions, rows: Rows) -> tuple[Rows, NDArray[np.float64], NDArray[np.float64]]:
    """The pairs without ties of rows (rows,) that have the same number of completions.

    Returns:
        (pairs,) each: its row, the probability that the one with the higher reward is the better one, and by how much
        that is above whether it is. Equal rewards are half right.
    """
    rewards = np.stack([predictions.outputs[row][:, 0] for row in rows]).astype(np.float64)
    scores = np.stack([predictions.targets[row][:, 0] for row in rows])
    i, j = np.triu_indices(rewards.shape[1], 1)
    ahead, better = rewards[:, i] - rewards[:, j], scores[:, i] - scores[:, j]
    confidence = 1 / (1 + np.exp(-np.abs(ahead)))
    right = np.where(ahead == 0, 0.5, (ahead > 0) == (better > 0))
    at = better != 0
    return np.broadcast_to(rows[:, None], at.shape)[at], confidence[at], (confidence - right)[at]


def _labels(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(rows, labels) each: the probabilities, and whether each label is present."""
    return np.concatenate(predictions.outputs).astype(np.float64), np.concatenate(predictions.targets) > 0.5


def exact_match_of_labels(predictions: Predictions) -> Figure:
    probabilities, targets = _labels(predictions)
    hits = ((probabilities >= THRESHOLD) == targets).all(1).astype(np.float64)
    return lambda rows: float(hits[rows].mean())


def micro_f1(predictions: Predictions) -> Figure:
    """2 TP / (2 TP + FP + FN) over all labels of all rows."""
    probabilities, targets = _labels(predictions)
    predicted = probabilities >= THRESHOLD
    return _f1((predicted & targets).sum(1), predicted.sum(1), targets.sum(1))


def _f1(hits: NDArray[np.int64], predicted: NDArray[np.int64], targets: NDArray[np.int64]) -> Figure:
    """F1 from the counts of each row (rows,)."""

    def value(rows: Rows) -> float:
        count = int(predicted[rows].sum() + targets[rows].sum())
        return 2 * int(hits[rows].sum()) / count if count else 1.0

    return value


def macro_f1_of_labels(predictions: Predictions) -> Figure:
    """The mean of 2 TP / (2 TP + FP + FN) over the labels that occur among predictions or targets."""
    probabilities, targets = _labels(predictions)
    predicted = probabilities >= THRESHOLD

    def value(rows: Rows) -> float:
        counts = predicted[rows].sum(0) + targets[rows].sum(0)
        hits = (predicted[rows] & targets[rows]).sum(0)
        return float(np.mean(2 * hits[counts > 0] / counts[counts > 0])) if counts.any() else 1.0

    return value


def calibration_of_labels(predictions: Predictions) -> Figure:
    """`calibration_error` with every label of every row as a binary classification."""
    probabilities, targets = _labels(predictions)
    return calibration(np.maximum(probabilities, 1 - probabilities), (probabilities >= THRESHOLD) == targets)


def _values(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(rows,) each: the predicted values and the targets."""
    predicted, targets = np.concatenate(predictions.outputs)[:, 0], np.concatenate(predictions.targets)[:, 0]
    return predicted.astype(np.float64), targets.astype(np.float64)


def root_mean_square_error(predictions: Predictions) -> Figure:
    predicted, targets = _values(predictions)
    squares = np.square(predicted - targets)
    return lambda rows: float(np.sqrt(squares[rows].mean()))


def correlation(predictions: Predictions) -> Figure:
    """Pearson's correlation; 0 if the predictions or the targets are constant."""
    predicted, targets = _values(predictions)
    return lambda rows: _correlation(predicted[rows], targets[rows])


def rank_correlation(predictions: Predictions) -> Figure:
    """Spearman's correlation: Pearson's of the ranks, where ties get their mean rank."""
    from scipy.stats import rankdata

    predicted, targets = _values(predictions)
    return lambda rows: _correlation(rankdata(predicted[rows]), rankdata(targets[rows]))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / size) if size > 1e-12 else 0.0


def entity_f1(predictions: Predictions) -> Figure:
    """2 TP / (2 TP + FP + FN) over entities. An entity is correct if its words and its label are (Tjong Kim Sang & De
    Meulder 2003)."""
    labels = predictions.labels
    predicted = [set(spans_of([labels[tag] for tag in row.argmax(-1)])) for row in predictions.outputs]
    targets = [set(spans_of([labels[int(tag)] for tag in row[:, 0]])) for row in predictions.targets]
    hits = np.array([len(found & expected) for found, expected in zip(predicted, targets, strict=True)])
    return _f1(hits, np.array([len(row) for row in predicted]), np.array([len(row) for row in targets]))


def tag_accuracy(predictions: Predictions) -> Figure:
    pairs = list(zip(predictions.outputs, predictions.targets, strict=True))
    hits = np.array([(outputs.argmax(-1) == targets[:, 0]).sum() for outputs, targets in pairs])
    words = np.array([len(targets) for _, targets in pairs])
    return lambda rows: float(hits[rows].sum() / words[rows].sum())


def ranks(predictions: Predictions) -> NDArray[np.int64]:
    """(rows,) the rank of each anchor's own positive among all positives and negatives, from 1.

    A text with the same similarity ranks behind the positive. Positives that another row has for the same anchor are
    skipped.
    """
    count = len(predictions.outputs)
    models = np.asarray(predictions.models) if len(predictions.models) else np.zeros(count, np.int64)
    result = np.zeros(count, np.int64)
    for model in np.unique(models):
        rows = np.flatnonzero(models == model).tolist()
        result[rows] = _ranks([predictions.outputs[row].astype(np.float64) for row in rows])
    return result


def _ranks(vectors: Sequence[NDArray[np.float64]]) -> NDArray[np.int64]:
    anchors, positives = (np.stack([row[text] for row in vectors]) for text in (0, 1))
    negatives = np.concatenate([row[2:] for row in vectors])
    similarities = (anchors * positives).sum(1)
    closer = []
    for start in range(0, len(vectors), 256):
        part, limit = anchors[start : start + 256], similarities[start : start + 256, None] + CLOSE
        other_anchor = part @ anchors.T < 1 - CLOSE
        closer.append(((part @ positives.T > limit) & other_anchor).sum(1) + (part @ negatives.T > limit).sum(1))
    return 1 + np.concatenate(closer)


def _mean_of_ranks(score: Callable[[NDArray[np.int64]], NDArray[Any]]) -> Callable[[Predictions], Figure]:
    def of(predictions: Predictions) -> Figure:
        scores = score(ranks(predictions))
        return lambda rows: float(scores[rows].mean())

    return of


PREDICTION_METRICS = {
    "accuracy": PredictionMetric("accuracy", "texts whose class is predicted correctly", 1, accuracy, of_hits=True),
    "macro_f1": PredictionMetric("macro F1", "mean of the F1 of each class", 1, macro_f1),
    "calibration_error": PredictionMetric(
        "calibration error", "how far a predicted probability is from how often it is right", -1, calibration_error
    ),
    "pair_calibration_error": PredictionMetric(
        "calibration error",
        "how far the probability that an answer is the better one, by the rewards, is from how often it is",
        -1,
        pair_calibration_error,
    ),
    "exact_match_of_labels": PredictionMetric(
        "exact match", "texts with every label predicted correctly", 1, exact_match_of_labels, of_hits=True
    ),
    "micro_f1": PredictionMetric("micro F1", "F1 over all labels of all texts", 1, micro_f1),
    "macro_f1_of_labels": PredictionMetric("macro F1", "mean of the F1 of each label", 1, macro_f1_of_labels),
    "calibration_of_labels": PredictionMetric(
        "calibration error", "how far a predicted probability is from how often it is right", -1, calibration_of_labels
    ),
    "root_mean_square_error": PredictionMetric(
        "root mean square error", "typical size of the error, in the unit of the values", -1, root_mean_square_error, ""
    ),
    "correlation": PredictionMetric("correlation", "Pearson's, of predictions and targets", 1, correlation, ""),
    "rank_correlation": PredictionMetric(
        "rank correlation", "Spearman's, of predictions and targets", 1, rank_correlation, ""
    ),
    "entity_f1": PredictionMetric("entity F1", "F1 over entities, with words and label both correct", 1, entity_f1),
    "tag_accuracy": PredictionMetric("tag accuracy", "words whose tag is predicted correctly", 1, tag_accuracy),
    "recall_at_1": PredictionMetric(
        "recall@1", "queries whose own document is the nearest", 1,
        _mean_of_ranks(lambda rank: (rank == 1) * 1.0), of_hits=True,
    ),
    "recall_at_10": PredictionMetric(
        "recall@10", "queries whose own document is among the ten nearest", 1,
        _mean_of_ranks(lambda rank: (rank <= 10) * 1.0), of_hits=True,
    ),
    "mean_reciprocal_rank": PredictionMetric(
        "mean reciprocal rank", "mean of 1 / rank of a query's own document", 1,
        _mean_of_ranks(lambda rank: 1.0 / rank), "",
    ),
}  # fmt: skip
"""Prediction metrics by name, as objectives list them in `metrics`."""
