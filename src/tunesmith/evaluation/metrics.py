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


def drawn_again(value: Callable[[NDArray[np.int64]], float], rows: int) -> tuple[float, NDArray[np.float64]]:
    """A figure of all rows, and of as many bootstrap draws of them, the same ones for every figure of so many rows."""
    drawn = np.random.default_rng(0).integers(0, rows, (RESAMPLES, rows))
    return value(np.arange(rows)), np.array([value(each) for each in drawn])


def interval_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def mean_with_interval(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """The mean over rows and its 95 % interval: of shares of hits Wilson's, which knows that few rows without a miss
    prove little; else by bootstrap (Efron 1979, percentiles)."""
    if np.isin(values, (0.0, 1.0)).all():
        return float(values.mean()), wilson(float(values.mean()), len(values))
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))


def change_with_interval(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """The mean of after − before over rows and its 95 % interval; both turn their signs where the sides are exchanged,
    so where no row is better, or none worse, the interval is as wide as Wilson's."""
    value, (low, high) = mean_with_interval(after - before)
    _, (turned_low, turned_high) = mean_with_interval(before - after)
    return value, (min(low, -turned_high), max(high, -turned_low))


def wilson(share: float, rows: int) -> tuple[float, float]:
    """95 % score interval of a share of so many rows (Wilson 1927)."""
    squared = 1.959964**2
    middle = (share + squared / (2 * rows)) / (1 + squared / rows)
    half = (squared * (share * (1 - share) / rows + squared / (4 * rows**2))) ** 0.5 / (1 + squared / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


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
