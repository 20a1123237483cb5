"""Figures of what a model tells of held-out texts: each from all rows together, with intervals over rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.models.predict import THRESHOLD, spans_of

Rows = NDArray[np.int64]
Figure = Callable[[Rows], float]
"""The rows' figure; rows may stand several times, as bootstrap draws have them."""

CLOSE = 1e-6
"""Cosines no further apart are of the same text."""

BINS = 15
"""Of confidences, as Guo et al. (2017) have them."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model says of rows, and what is told of them.

    Attributes:
        said: of each row (marks, outputs): probabilities, values, or the vectors of its texts.
        told: of each row (marks, values): what is right; of texts that are compared, nothing.
        labels: the outputs' names.
        models: of each row, which model said it; vectors of several are not compared.
    """

    said: Sequence[NDArray[np.float32]]
    told: Sequence[NDArray[np.float32]]
    labels: tuple[str, ...]
    models: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class PredictionMetric:
    """A figure of all rows together.

    Attributes:
        described: its name for a table.
        explained: what it says, for those who have not met it.
        better: 1 where more is better, −1 where less is.
        of: prepares a telling; the result gives the figure of any rows.
        unit: `%` for a share, empty for what has a size of its own.
        of_hits: whether it is the share of rows that are hit, each a hit or a miss.
    """

    described: str
    explained: str
    better: int
    of: Callable[[Predictions], Figure]
    unit: Literal["%", ""] = "%"
    of_hits: bool = False


def _classes(predictions: Predictions) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """(rows,) each: the likeliest class, its probability, the right class."""
    said = np.concatenate(predictions.said).astype(np.float64)
    return said.argmax(1), said.max(1), np.concatenate(predictions.told)[:, 0].astype(np.int64)


def accuracy(predictions: Predictions) -> Figure:
    likeliest, _, right = _classes(predictions)
    hits = (likeliest == right).astype(np.float64)
    return lambda rows: float(hits[rows].mean())


def macro_f1(predictions: Predictions) -> Figure:
    """The mean over the classes that are said or right of 2 TP / (2 TP + FP + FN)."""
    likeliest, _, right = _classes(predictions)
    classes = int(max(likeliest.max(), right.max())) + 1

    def value(rows: Rows) -> float:
        said, wanted = likeliest[rows], right[rows]
        both = np.bincount(said, minlength=classes) + np.bincount(wanted, minlength=classes)  # 2 TP + FP + FN
        hits = np.bincount(said[said == wanted], minlength=classes)
        return float(np.mean(2 * hits[both > 0] / both[both > 0]))

    return value


def calibration_error(predictions: Predictions) -> Figure:
    """Expected calibration error (Guo et al. 2017, eq. 3): Σ share of bin · |accuracy − mean confidence| in it."""
    likeliest, sure, right = _classes(predictions)
    return _calibration(sure, likeliest == right)


def _calibration(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> Figure:
    places = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    surplus = sure - right
    return lambda rows: float(
        np.abs(np.bincount(places[rows].ravel(), surplus[rows].ravel())).sum() / surplus[rows].size
    )


def _labels(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(rows, labels) each: probabilities, and which labels are right."""
    return np.concatenate(predictions.said).astype(np.float64), np.concatenate(predictions.told) > 0.5


def exact_labels(predictions: Predictions) -> Figure:
    sure, right = _labels(predictions)
    hits = ((sure >= THRESHOLD) == right).all(1).astype(np.float64)
    return lambda rows: float(hits[rows].mean())


def micro_f1(predictions: Predictions) -> Figure:
    """2 TP / (2 TP + FP + FN) over all labels of all rows."""
    sure, right = _labels(predictions)
    said = sure >= THRESHOLD
    return _f1((said & right).sum(1), said.sum(1), right.sum(1))


def _f1(hits: NDArray[np.int64], said: NDArray[np.int64], right: NDArray[np.int64]) -> Figure:
    """From each row's counts."""

    def value(rows: Rows) -> float:
        both = int(said[rows].sum() + right[rows].sum())
        return 2 * int(hits[rows].sum()) / both if both else 1.0

    return value


def macro_f1_of_labels(predictions: Predictions) -> Figure:
    """The mean over the labels that are said or right of 2 TP / (2 TP + FP + FN)."""
    sure, right = _labels(predictions)
    said = sure >= THRESHOLD

    def value(rows: Rows) -> float:
        both = said[rows].sum(0) + right[rows].sum(0)
        hits = (said[rows] & right[rows]).sum(0)
        return float(np.mean(2 * hits[both > 0] / both[both > 0])) if both.any() else 1.0

    return value


def calibration_of_labels(predictions: Predictions) -> Figure:
    """`calibration_error` of every label by itself, as a class that holds or does not."""
    sure, right = _labels(predictions)
    return _calibration(np.maximum(sure, 1 - sure), (sure >= THRESHOLD) == right)


def _values(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.concatenate(predictions.said)[:, 0].astype(np.float64), np.concatenate(predictions.told)[:, 0].astype(
        np.float64
    )


def root_mean_square_error(predictions: Predictions) -> Figure:
    said, right = _values(predictions)
    squares = np.square(said - right)
    return lambda rows: float(np.sqrt(squares[rows].mean()))


def correlation(predictions: Predictions) -> Figure:
    """Pearson's, 0 where either side does not vary."""
    said, right = _values(predictions)
    return lambda rows: _correlation(said[rows], right[rows])


def rank_correlation(predictions: Predictions) -> Figure:
    """Spearman's: Pearson's of the ranks, ties at their mean."""
    from scipy.stats import rankdata

    said, right = _values(predictions)
    return lambda rows: _correlation(rankdata(said[rows]), rankdata(right[rows]))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / size) if size > 1e-12 else 0.0


def entity_f1(predictions: Predictions) -> Figure:
    """2 TP / (2 TP + FP + FN) over entities; one is right if its words and its label are (Tjong Kim Sang & De Meulder
    2003)."""
    said = [set(spans_of([predictions.labels[place] for place in each.argmax(-1)])) for each in predictions.said]
    right = [set(spans_of([predictions.labels[int(place)] for place in each[:, 0]])) for each in predictions.told]
    hits = np.array([len(ours & theirs) for ours, theirs in zip(said, right, strict=True)])
    return _f1(hits, np.array([len(each) for each in said]), np.array([len(each) for each in right]))


def tag_accuracy(predictions: Predictions) -> Figure:
    pairs = list(zip(predictions.said, predictions.told, strict=True))
    hits = np.array([(said.argmax(-1) == told[:, 0]).sum() for said, told in pairs])
    words = np.array([len(told) for _, told in pairs])
    return lambda rows: float(hits[rows].sum() / words[rows].sum())


def ranks(predictions: Predictions) -> NDArray[np.int64]:
    """(rows,) where each anchor's own positive stands among all positives and negatives, from 1; texts as near as it
    are behind it, and what belongs to the same anchor in another row is passed over."""
    models = np.asarray(predictions.models) if len(predictions.models) else np.zeros(len(predictions.said), np.int64)
    found = np.zeros(len(predictions.said), np.int64)
    for model in np.unique(models):
        rows = np.flatnonzero(models == model).tolist()
        found[rows] = _ranks([predictions.said[row].astype(np.float64) for row in rows])
    return found


def _ranks(said: Sequence[NDArray[np.float64]]) -> NDArray[np.int64]:
    anchors, positives = (np.stack([each[place] for each in said]) for place in (0, 1))
    negatives = np.concatenate([each[2:] for each in said])
    own = (anchors * positives).sum(1)
    nearer = []
    for start in range(0, len(said), 256):
        part, limit = anchors[start : start + 256], own[start : start + 256, None] + CLOSE
        another = part @ anchors.T < 1 - CLOSE
        nearer.append(((part @ positives.T > limit) & another).sum(1) + (part @ negatives.T > limit).sum(1))
    return 1 + np.concatenate(nearer)


def _mean_of_ranks(score: Callable[[NDArray[np.int64]], NDArray[Any]]) -> Callable[[Predictions], Figure]:
    def of(predictions: Predictions) -> Figure:
        scores = score(ranks(predictions))
        return lambda rows: float(scores[rows].mean())

    return of


PREDICTION_METRICS = {
    "accuracy": PredictionMetric("accuracy", "texts whose class is told rightly", 1, accuracy, of_hits=True),
    "macro_f1": PredictionMetric("macro F1", "F1 of each class, all alike", 1, macro_f1),
    "calibration_error": PredictionMetric(
        "calibration error", "how far a told probability is from how often it is right", -1, calibration_error
    ),
    "exact_labels": PredictionMetric(
        "all labels right", "texts of which every label is told rightly", 1, exact_labels, of_hits=True
    ),
    "micro_f1": PredictionMetric("micro F1", "F1 over all labels of all texts", 1, micro_f1),
    "macro_f1_of_labels": PredictionMetric("macro F1", "F1 of each label, all alike", 1, macro_f1_of_labels),
    "calibration_of_labels": PredictionMetric(
        "calibration error", "how far a told probability is from how often it is right", -1, calibration_of_labels
    ),
    "root_mean_square_error": PredictionMetric(
        "root mean square error", "how far off values are, in their own unit", -1, root_mean_square_error, ""
    ),
    "correlation": PredictionMetric("correlation", "Pearson's, of told and right values", 1, correlation, ""),
    "rank_correlation": PredictionMetric("rank correlation", "Spearman's, of told and right values", 1, rank_correlation, ""),
    "entity_f1": PredictionMetric("entity F1", "F1 over entities, words and label both right", 1, entity_f1),
    "tag_accuracy": PredictionMetric("tag accuracy", "words whose tag is told rightly", 1, tag_accuracy),
    "found_first": PredictionMetric(
        "found first", "texts whose own counterpart is the nearest", 1,
        _mean_of_ranks(lambda found: (found == 1) * 1.0), of_hits=True,

    ),
    "found_in_ten": PredictionMetric(
        "found in ten", "texts whose counterpart is among the ten nearest", 1,
        _mean_of_ranks(lambda found: (found <= 10) * 1.0), of_hits=True,
    ),
    "reciprocal_rank": PredictionMetric(
        "reciprocal rank", "1 / rank of a text's own counterpart, on average", 1,
        _mean_of_ranks(lambda found: 1.0 / found), "",
    ),
}  # fmt: skip
"""By the names that objectives give in `metrics`."""
