"""Labels that are probably wrong: confident learning (Northcutt, Jiang & Chuang 2021).

A classifier predicts each row's label without having seen the row: multinomial logistic regression on TF-IDF, in
five-fold cross-validation. The threshold of a class is the mean probability that its rows have of it. A row whose most
probable class among those above their thresholds is another than its label is off the diagonal of the confident joint.
It is marked if its own label's probability is also less than a tenth of that label's threshold.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.labeled import Labeled, is_labeled, labeled
from tunesmith.checks.result import Mark
from tunesmith.checks.table import Table
from tunesmith.checks.table_check import TableCheck

FOLDS = 5

REGULARIZATION = 30.0
"""C of the regression: the weight of the loss beside the squared weights."""

STEPS = 15
"""Of L-BFGS: more change no probability that matters."""

DOUBT = 0.1
"""A marked label is less probable than this share of its threshold."""

Probabilities = NDArray[np.float32]


def _suspicious(table: Table) -> Iterator[Mark]:
    rows = labeled(table)
    if len(rows.classes) < 2 or not rows.texts:
        return
    probabilities = cross_validated(rows)
    better = suspects(probabilities, rows.labels)
    for row in np.flatnonzero(better >= 0).tolist():
        own, other = int(rows.labels[row]), int(better[row])
        detail = (
            f"labeled {rows.classes[own]!r} (probability {probabilities[row, own]:.1%}), but reads like "
            f"{rows.classes[other]!r} ({probabilities[row, other]:.0%})"
        )
        yield Mark(rows.sources[row], detail, (), float(probabilities[row, other] - probabilities[row, own]))


def cross_validated(rows: Labeled) -> Probabilities:
    """Of each row, the probabilities of the classes (rows, classes), by a classifier that has not seen it.

    Args:
        rows: labeled texts.
    """
    features, labels = rows.features, rows.labels
    found = np.zeros((len(labels), len(rows.classes)), np.float32)
    folds = np.empty(len(labels), np.int64)
    folds[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS  # each class in each fold
    for fold in range(FOLDS):
        seen = folds != fold
        weights = _fitted(features[seen], labels[seen], len(rows.classes))
        found[~seen] = _softmax(features[~seen] @ weights)
    return found


def suspects(probabilities: Probabilities, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class that each row probably has instead of its label; -1 if its label may be right.

    Args:
        probabilities: (rows, classes), of a classifier that has not seen the row.
        labels: (rows,).
    """
    own = probabilities[np.arange(len(labels)), labels]
    thresholds = np.bincount(labels, own, probabilities.shape[1]) / np.maximum(np.bincount(labels), 1)
    above = np.where(probabilities >= thresholds, probabilities, -1)
    best = above.argmax(axis=1)
    is_suspect = (above.max(axis=1) >= 0) & (best != labels) & (own < DOUBT * thresholds[labels])
    return np.where(is_suspect, best, -1)


def _fitted(features: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """The weights (words, classes) of a multinomial logistic regression. In fp32: scikit-learn's takes seven times as
    long, and its probabilities mark the same rows."""
    from scipy.optimize import minimize

    shape = (features.shape[1], classes)
    targets = np.eye(classes, dtype=np.float32)[labels]
    transposed = features.T.tocsr()  # type: ignore[attr-defined]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(shape).astype(np.float32)
        predicted = _softmax(features @ weights)
        own = np.maximum((predicted * targets).sum(axis=1), 1e-30)
        value = -REGULARIZATION * float(np.log(own).sum()) + 0.5 * float((weights * weights).sum())
        gradient = REGULARIZATION * (transposed @ (predicted - targets)) + weights
        return value, gradient.ravel().astype(np.float64)

    options = {"maxiter": STEPS, "maxcor": 5}
    found = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options=options)
    weights: NDArray[np.float32] = found.x.reshape(shape).astype(np.float32)
    return weights


def _softmax(scores: NDArray[np.float32]) -> Probabilities:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


SUSPICIOUS_LABELS = TableCheck(
    "suspicious_labels",
    "Suspicious labels",
    "warning",
    "Look at them one by one: some are wrong, others are unusual and worth keeping. Correct or remove the wrong ones.",
    _suspicious,
    when=is_labeled,
)
