"""Figures of what a model tells of held-out texts: each from all rows together, with intervals over rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.models.tell import HOLDS, spans_of

Rows = NDArray[np.int64]
Figure = Callable[[Rows], float]
"""The rows' figure; rows may stand several times, as bootstrap draws have them."""

CLOSE = 1e-6
"""Cosines no further apart are of the same text."""

BINS = 15
"""Of confidences, as Guo et al. (2017) have them."""


@dataclass(frozen=True, slots=True)
class Telling:
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
class ToldMetric:
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
    of: Callable[[Telling], Figure]
    unit: Literal["%", ""] = "%"
    of_hits: bool = False


def _classes(telling: Telling) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """(rows,) each: the likeliest class, its probability, the right class."""
    said = np.concatenate(telling.said).astype(np.float64)
    return said.argmax(1), said.max(1), np.concatenate(telling.told)[:, 0].astype(np.int64)


def accuracy(telling: Telling) -> Figure:
    likeliest, _, right = _classes(telling)
    hits = (likeliest == right).astype(np.float64)
    return lambda rows: float(hits[rows].mean())


def macro_f1(telling: Telling) -> Figure:
    """The mean over the classes that are said or right of 2 TP / (2 TP + FP + FN)."""
    likeliest, _, right = _classes(telling)
    classes = int(max(likeliest.max(), right.max())) + 1

    def value(rows: Rows) -> float:
        said, wanted = likeliest[rows], right[rows]
        both = np.bincount(said, minlength=classes) + np.bincount(wanted, minlength=classes)  # 2 TP + FP + FN
        hits = np.bincount(said[said == wanted], minlength=classes)
        return float(np.mean(2 * hits[both > 0] / both[both > 0]))

    return value


def calibration_error(telling: Telling) -> Figure:
    """Expected calibration error (Guo et al. 2017, eq. 3): Σ share of bin · |accuracy − mean confidence| in it."""
    likeliest, sure, right = _classes(telling)
    return _calibration(sure, likeliest == right)


def _calibration(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> Figure:
    places = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    surplus = sure - right
    return lambda rows: float(
        np.abs(np.bincount(places[rows].ravel(), surplus[rows].ravel())).sum() / surplus[rows].size
    )


def _labels(telling: Telling) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(rows, labels) each: probabilities, and which labels are right."""
    return np.concatenate(telling.said).astype(np.float64), np.concatenate(telling.told) > 0.5


def exact_labels(telling: Telling) -> Figure:
    sure, right = _labels(telling)
    hits = ((sure >= HOLDS) == right).all(1).astype(np.float64)
    return lambda rows: float(hits[rows].mean())


def micro_f1(telling: Telling) -> Figure:
    """2 TP / (2 TP + FP + FN) over all labels of all rows."""
    sure, right = _labels(telling)
    said = sure >= HOLDS
    return _f1((said & right).sum(1), said.sum(1), right.sum(1))


def _f1(hits: NDArray[np.int64], said: NDArray[np.int64], right: NDArray[np.int64]) -> Figure:
    """From each row's counts."""

    def value(rows: Rows) -> float:
        both = int(said[rows].sum() + right[rows].sum())
        return 2 * int(hits[rows].sum()) / both if both else 1.0

    return value


def macro_f1_of_labels(telling: Telling) -> Figure:
    """The mean over the labels that are said or right of 2 TP / (2 TP + FP + FN)."""
    sure, right = _labels(telling)
    said = sure >= HOLDS

    def value(rows: Rows) -> float:
        both = said[rows].sum(0) + right[rows].sum(0)
        hits = (said[rows] & right[rows]).sum(0)
        return float(np.mean(2 * hits[both > 0] / both[both > 0])) if both.any() else 1.0

    return value


def calibration_of_labels(telling: Telling) -> Figure:
    """`calibration_error` of every label by itself, as a class that holds or does not."""
    sure, right = _labels(telling)
    return _calibration(np.maximum(sure, 1 - sure), (sure >= HOLDS) == right)


def _values(telling: Telling) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.concatenate(telling.said)[:, 0].astype(np.float64), np.concatenate(telling.told)[:, 0].astype(np.float64)


def root_mean_square_error(telling: Telling) -> Figure:
    said, right = _values(telling)
    squares = np.square(said - right)
    return lambda rows: float(np.sqrt(squares[rows].mean()))


def correlation(telling: Telling) -> Figure:
    """Pearson's, 0 where either side does not vary."""
    said, right = _values(telling)
    return lambda rows: _correlation(said[rows], right[rows])


def rank_correlation(telling: Telling) -> Figure:
    """Spearman's: Pearson's of the ranks, ties at their mean."""
    from scipy.stats import rankdata

    said, right = _values(telling)
    return lambda rows: _correlation(rankdata(said[rows]), rankdata(right[rows]))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / size) if size > 1e-12 else 0.0


def entity_f1(telling: Telling) -> Figure:
    """2 TP / (2 TP + FP + FN) over entities; one is right if its words and its label are (Tjong Kim Sang & De Meulder
    2003)."""
    said = [set(spans_of([telling.labels[place] for place in each.argmax(-1)])) for each in telling.said]
    right = [set(spans_of([telling.labels[int(place)] for place in each[:, 0]])) for each in telling.told]
    hits = np.array([len(ours & theirs) for ours, theirs in zip(said, right, strict=True)])
    return _f1(hits, np.array([len(each) for each in said]), np.array([len(each) for each in right]))


def tag_accuracy(telling: Telling) -> Figure:
    pairs = list(zip(telling.said, telling.told, strict=True))
    hits = np.array([(said.argmax(-1) == told[:, 0]).sum() for said, told in pairs])
    words = np.array([len(told) for _, told in pairs])
    return lambda rows: float(hits[rows].sum() / words[rows].sum())


def ranks(telling: Telling) -> NDArray[np.int64]:
    """(rows,) where each anchor's own positive stands among all positives and negatives, from 1; texts as near as it
    are behind it, and what belongs to the same anchor in another row is passed over."""
    models = np.asarray(telling.models) if len(telling.models) else np.zeros(len(telling.said), np.int64)
    found = np.zeros(len(telling.said), np.int64)
    for model in np.unique(models):
        rows = np.flatnonzero(models == model).tolist()
        found[rows] = _ranks([telling.said[row].astype(np.float64) for row in rows])
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


def _mean_of_ranks(score: Callable[[NDArray[np.int64]], NDArray[Any]]) -> Callable[[Telling], Figure]:
    def of(telling: Telling) -> Figure:
        scores = score(ranks(telling))
        return lambda rows: float(scores[rows].mean())

    return of


TOLD_METRICS = {
    "accuracy": ToldMetric("accuracy", "texts whose class is told rightly", 1, accuracy, of_hits=True),
    "macro_f1": ToldMetric("macro F1", "F1 of each class, all alike", 1, macro_f1),
    "calibration_error": ToldMetric(
        "calibration error", "how far a told probability is from how often it is right", -1, calibration_error
    ),
    "exact_labels": ToldMetric(
        "all labels right", "texts of which every label is told rightly", 1, exact_labels, of_hits=True
    ),
    "micro_f1": ToldMetric("micro F1", "F1 over all labels of all texts", 1, micro_f1),
    "macro_f1_of_labels": ToldMetric("macro F1", "F1 of each label, all alike", 1, macro_f1_of_labels),
    "calibration_of_labels": ToldMetric(
        "calibration error", "how far a told probability is from how often it is right", -1, calibration_of_labels
    ),
    "root_mean_square_error": ToldMetric(
        "root mean square error", "how far off values are, in their own unit", -1, root_mean_square_error, ""
    ),
    "correlation": ToldMetric("correlation", "Pearson's, of told and right values", 1, correlation, ""),
    "rank_correlation": ToldMetric("rank correlation", "Spearman's, of told and right values", 1, rank_correlation, ""),
    "entity_f1": ToldMetric("entity F1", "F1 over entities, words and label both right", 1, entity_f1),
    "tag_accuracy": ToldMetric("tag accuracy", "words whose tag is told rightly", 1, tag_accuracy),
    "found_first": ToldMetric(
        "found first", "texts whose own counterpart is the nearest", 1,
        _mean_of_ranks(lambda found: (found == 1) * 1.0), of_hits=True,

    ),
    "found_in_ten": ToldMetric(
        "found in ten", "texts whose counterpart is among the ten nearest", 1,
        _mean_of_ranks(lambda found: (found <= 10) * 1.0), of_hits=True,
    ),
    "reciprocal_rank": ToldMetric(
        "reciprocal rank", "1 / rank of a text's own counterpart, on average", 1,
        _mean_of_ranks(lambda found: 1.0 / found), "",
    ),
}  # fmt: skip
"""By the names that objectives give in `metrics`."""
