"""Scores of a generated answer against the expected one, from 0 to 1, and confidence intervals of their mean."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.extensions import failures_named, is_path
from tunesmith.config.registry import METRICS as INSTALLED
from tunesmith.errors import UserError
from tunesmith.evaluation.json_metrics import field_f1, is_json, valid_json

RESAMPLES = 2000

Score = Callable[[str, str], float]
"""(answer, expected) → [0, 1]."""


def _any_text(text: str) -> bool:
    """A metric that fits every expected answer."""
    return True


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of an answer.

    Attributes:
        title: its name in tables.
        explanation: an explanation for readers who do not know it.
        score: maps an answer and the expected answer to [0, 1].
        fits: whether the metric can score answers to an expected answer. It is left out unless it fits all of them.
    """

    title: str
    explanation: str
    score: Score
    fits: Callable[[str], bool] = _any_text


def exact_match(answer: str, expected: str) -> float:
    """1 if both are equal, ignoring case, white space and final periods."""
    return float(_plain(answer) == _plain(expected))


def first_word(answer: str, expected: str) -> float:
    """1 if both start with the same word, ignoring case and punctuation."""
    return float(bool(_words(answer)) and _words(answer)[:1] == _words(expected)[:1])


def rouge_l(answer: str, expected: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of stemmed words (Lin 2004), by the rouge-score package."""
    return float(_rouge().score(expected, answer)["rougeL"].fmeasure)


METRICS = {
    "rouge_l": Metric("word overlap", "words shared with the expected answer, in order (ROUGE-L F1)", rouge_l),
    "first_word": Metric("first word correct", "answers that start with the expected answer's first word", first_word),
    "exact_match": Metric("exact match", "answers that equal the expected answer, word for word", exact_match),
    "valid_json": Metric("valid JSON", "answers that are a JSON object or array", valid_json, is_json),
    "fields": Metric(
        "fields right", "fields of the expected JSON with the right value in the right place (F1)", field_f1, is_json
    ),
}
"""Metrics of generated answers by name, for evaluation.json and the report."""


def metric_named(name: str, directory: Path | None = None) -> Metric:
    """A metric by its name, or one of a user as `module:name`.

    Args:
        name: of a `Metric`, or of a function like `Metric.score`.
        directory: where a module of that name is looked up first.

    Raises:
        UserError: there is no such metric, or it is something else.
    """
    if name in METRICS:
        return METRICS[name]
    if name not in INSTALLED and not is_path(name):
        raise UserError(
            f"The metric {name} is not known. Known: {', '.join([*METRICS, *INSTALLED])}; or name your own as "
            "module:function."
        )
    found = INSTALLED.load(name, directory)
    if isinstance(found, Metric):
        return found
    if not callable(found):
        raise UserError(f"{name} is neither a function of an answer and the expected answer nor a Metric.")
    title = name.rpartition(":")[2].replace("_", " ")
    explanation = next(iter((getattr(found, "__doc__", None) or "").strip().splitlines()), f"your metric {name}")
    return Metric(title, explanation, found)


def bootstrap(figure: Callable[[NDArray[np.int64]], float], rows: int) -> tuple[float, NDArray[np.float64]]:
    """A figure over all rows, and over each bootstrap resample of them.

    The resamples depend only on the number of rows, so that figures of two models on the same rows are paired.

    Args:
        figure: maps row indices to the figure.
        rows: how many rows there are.

    Returns:
        The figure over all rows, and over each resample (resamples,).
    """
    resamples = np.random.default_rng(0).integers(0, rows, (RESAMPLES, rows))
    return figure(np.arange(rows)), np.array([figure(resample) for resample in resamples])


def interval_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of the bootstrap resamples."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def mean_with_interval(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """The mean over rows and its 95 % interval.

    For scores that are all 0 or 1 it is Wilson's interval, which stays wide for a few rows without an error. Otherwise
    it is the percentile bootstrap (Efron 1979).
    """
    if np.isin(values, (0.0, 1.0)).all():
        return float(values.mean()), wilson(float(values.mean()), len(values))
    resamples = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[resamples].mean(1), [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))


def change_with_interval(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """The mean of after − before over rows and its 95 % interval.

    Swapping the sides flips the sign of both. If no row is better, or none is worse, it is as wide as Wilson's.
    """
    value, (low, high) = mean_with_interval(after - before)
    _, (swapped_low, swapped_high) = mean_with_interval(before - after)
    return value, (min(low, -swapped_high), max(high, -swapped_low))


def wilson(share: float, rows: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `rows` rows (Wilson 1927)."""
    squared = 1.959964**2
    middle = (share + squared / (2 * rows)) / (1 + squared / rows)
    half = (squared * (share * (1 - share) / rows + squared / (4 * rows**2))) ** 0.5 / (1 + squared / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def fitting(metrics: Mapping[str, Metric], expected: Sequence[str]) -> dict[str, Metric]:
    """The metrics that fit every expected answer.

    Args:
        metrics: by name.
        expected: the expected answers.

    Returns:
        By name; none if there are no expected answers.
    """
    return {name: metric for name, metric in metrics.items() if expected and all(map(metric.fits, expected))}


def scores(metric: Metric, answers: Sequence[str], expected: Sequence[str]) -> NDArray[np.float64]:
    """The metric's score of each row (rows,).

    Raises:
        UserError: a metric of a user's fails.
    """
    module = getattr(metric.score, "__module__", None) or ""
    own = module.partition(".")[0] == "tunesmith"
    with failures_named({} if own else {f"The metric {metric.title}": module}):
        return np.array([metric.score(answer, target) for answer, target in zip(answers, expected, strict=True)])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.casefold())


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
