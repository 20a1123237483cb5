"""Scores of a written answer against the expected one, from 0 to 1, and the uncertainty of their mean."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000

Score = Callable[[str, str], float]
"""(answer, expected) → [0, 1]."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A score, its name for a table, and what it says, for those who have not met it."""

    described: str
    explained: str
    score: Score


def exact_match(answer: str, expected: str) -> float:
    """1 if both say the same, but for case, white space and a last full stop."""
    return float(_plain(answer) == _plain(expected))


def first_word(answer: str, expected: str) -> float:
    """1 if both begin with the same word, but for case and punctuation."""
    return float(bool(_words(answer)) and _words(answer)[:1] == _words(expected)[:1])


def rouge_l(answer: str, expected: str) -> float:
    """F1 of the longest common subsequence of words, stemmed (Lin 2004), by the rouge-score package."""
    return float(_rouge().score(expected, answer)["rougeL"].fmeasure)


METRICS = {
    "rouge_l": Metric("word overlap", "words shared with the expected answer, in order (ROUGE-L F1)", rouge_l),
    "first_word": Metric("first word right", "answers that begin with the expected answer's first word", first_word),
    "exact_match": Metric("exactly right", "answers that say what is expected, word for word", exact_match),
}
"""Of written answers, by name, for evaluation.json and the report."""

CLASS_METRICS = {"accuracy": Metric("accuracy", "texts whose class is told rightly", exact_match)}
"""Of classes told, in the same form."""

BINS = 15
"""Of confidences, as Guo et al. (2017) have them."""


@dataclass(frozen=True, slots=True)
class WholeMetric:
    """What only all rows together have: told classes, confidences, expected classes, each (rows,) → [0, 1].

    Attributes:
        described, explained: as in `Metric`.
        better: 1 where more is better, −1 where less is.
        value: of the rows.
    """

    described: str
    explained: str
    better: int
    value: Callable[[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]], float]


def macro_f1(told: NDArray[np.int64], _: NDArray[np.float64], expected: NDArray[np.int64]) -> float:
    """The mean over the classes that are told or expected of 2 TP / (2 TP + FP + FN)."""
    classes = int(max(told.max(), expected.max())) + 1
    both = np.bincount(told, minlength=classes) + np.bincount(expected, minlength=classes)  # 2 TP + FP + FN
    right = np.bincount(told[told == expected], minlength=classes)
    return float(np.mean(2 * right[both > 0] / both[both > 0]))


def calibration_error(told: NDArray[np.int64], confidences: NDArray[np.float64], expected: NDArray[np.int64]) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3): Σ share of bin · |accuracy − mean confidence| in it."""
    places = np.minimum((confidences * BINS).astype(np.int64), BINS - 1)
    surplus = np.bincount(places, confidences - (told == expected), minlength=BINS)
    return float(np.abs(surplus).sum() / len(told))


WHOLE_METRICS = {
    "macro_f1": WholeMetric("macro F1", "F1 of each class, all alike", 1, macro_f1),
    "calibration_error": WholeMetric(
        "calibration error", "how far a told probability is from how often it is right", -1, calibration_error
    ),
}
"""Of classes told, by name."""


def drawn_again(value: Callable[[NDArray[np.int64]], float], rows: int) -> tuple[float, NDArray[np.float64]]:
    """A figure of all rows, and of as many bootstrap draws of them, the same ones for every figure of so many rows."""
    drawn = np.random.default_rng(0).integers(0, rows, (RESAMPLES, rows))
    return value(np.arange(rows)), np.array([value(each) for each in drawn])


def interval_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def mean_with_interval(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """The mean over rows and its 95 % bootstrap interval (Efron 1979, percentiles)."""
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))


def scores(metric: Metric, answers: Sequence[str], expected: Sequence[str]) -> NDArray[np.float64]:
    """(rows,) of the metric's scores."""
    return np.array([metric.score(answer, wanted) for answer, wanted in zip(answers, expected, strict=True)])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.casefold())


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
