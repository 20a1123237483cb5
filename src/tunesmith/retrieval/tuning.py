"""The way to search, its weight, and the threshold of "not found", chosen on half of the questions and tested on the
other half."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import UserError
from tunesmith.retrieval.measures import Scored, measure, ndcg, scored
from tunesmith.retrieval.questions import about_questions, read_questions
from tunesmith.retrieval.ranking import WAYS, WEIGHT
from tunesmith.retrieval.search import TUNED, Index, Tuned
from tunesmith.run import atomic_write, writing

WEIGHTS = tuple(step / 20 for step in range(1, 20))
"""Of the cosine, that are tried; 0 and 1 are the ways `text` and `dense`."""

KEPT = 0.95
"""Without questions that have no answer, the threshold keeps this share of those that have one."""

READ = 5
"""Chunks whose relevance counts: as many as `ask` reads."""

Relevances = NDArray[np.float64]
"""(questions,) of the best chunk that is found for each."""

LEAST = 10
"""Questions with an answer, in each half."""


def measure_questions(index: str | Path | Index, questions: str | Path, k: int = 10) -> dict[str, Any]:
    """How well each way to search finds the passages of questions.

    Args:
        index: its directory, or the open index.
        questions: a JSONL file, as `read_questions` explains.
        k: of recall and nDCG.

    Returns:
        As `measure`, for all ways that the index has; and the one that was tuned.

    Raises:
        UserError: there is no such index or file, or a passage is in no chunk.
    """
    opened = index if isinstance(index, Index) else Index(index)
    path = Path(questions)
    read = read_questions(path)
    return measure(scored(opened, read), _ways(opened, opened.tuned), k, about_questions(path, read))


def tune(index: str | Path | Index, questions: str | Path, k: int = 10) -> dict[str, Any]:
    """Choose the way to search, its weight and the threshold of `tunesmith.ask` on half of the questions, write them
    into the index, and measure on the other half.

    Args:
        index: its directory, or the open index.
        questions: a JSONL file, as `read_questions` explains.
        k: of recall and nDCG. The way with the highest nDCG is chosen.

    Returns:
        As `measure`, on the other half; and `tuned`: `mode`, `weight`, `threshold`, and `threshold_errors`: on the
        other half, the shares of questions with an answer below the threshold, and without one above it.

    Raises:
        UserError: as `measure_questions` raises, or there are too few questions.
    """
    opened = index if isinstance(index, Index) else Index(index)
    path = Path(questions)
    rows = scored(opened, read_questions(path))
    development = [row for row in rows if row.question.is_development]
    held_out = [row for row in rows if not row.question.is_development]
    fewest = min(sum(bool(row.relevant) for row in half) for half in (development, held_out))
    if fewest < LEAST:
        raise UserError(
            f"{path} has too few questions to tune: {fewest} with a passage in one half, at least {LEAST} are needed. "
            "Add some; a question's text decides which half it belongs to."
        )
    chosen = _best_way([row for row in development if row.relevant], k)
    threshold = _threshold(*_relevances(opened, development, *chosen))
    tuned = Tuned(*chosen, threshold, len(development))
    with writing(opened.path / TUNED), atomic_write(opened.path / TUNED) as file:
        json.dump(asdict(tuned), file)
    opened.tuned = tuned
    data = f"{about_questions(path, [row.question for row in held_out])}, which the tuning has not seen"
    result = measure(held_out, _ways(opened, tuned), k, data)
    errors = _errors(*_relevances(opened, held_out, *chosen), threshold)
    return result | {"tuned": {**asdict(tuned), "threshold_errors": errors}}


def _ways(index: Index, tuned: Tuned | None) -> dict[str, tuple[str, float]]:
    """Name → way and weight: all ways of the index, and the tuned one if it is none of these."""
    names = ["text"] if index.version.dense is None else list(WAYS)
    ways = {name: (name, WEIGHT) for name in names}
    if tuned is not None and tuned.mode == "weighted" and tuned.weight != WEIGHT:
        ways[f"weighted, {tuned.weight:g}"] = (tuned.mode, tuned.weight)
    return ways


def _best_way(rows: Sequence[Scored], k: int) -> tuple[str, float]:
    """The way with the highest mean nDCG, and its weight; of equal ones, the simplest."""
    choices = [("text", WEIGHT)]
    if rows[0].candidates.cosines is not None:
        choices += [("dense", WEIGHT), ("rrf", WEIGHT), *(("weighted", weight) for weight in WEIGHTS)]
    means = [float(np.mean([ndcg(row.order(*choice).tolist(), row.relevant, k) for row in rows])) for choice in choices]
    return choices[int(np.argmax(means))]


def _threshold(with_answer: Relevances, without: Relevances) -> float:
    """Between questions with and without an answer: the value with the highest mean of both shares on the right side.
    Without any of the latter: the value that keeps most of the former."""
    if not len(without):
        return float(np.quantile(with_answer, 1 - KEPT))
    values = np.unique(np.concatenate([with_answer, without]))
    candidates = np.concatenate([values[:1] - 1e-6, (values[1:] + values[:-1]) / 2, values[-1:] + 1e-6])
    right = [(with_answer >= value).mean() + (without < value).mean() for value in candidates]
    return float(np.clip(candidates[int(np.argmax(right))], 0, 1))


def _errors(with_answer: Relevances, without: Relevances, threshold: float) -> dict[str, float | None]:
    """The shares of questions with an answer below the threshold, and without one above it."""
    missed, wrong = with_answer < threshold, without >= threshold
    return {"missed": float(missed.mean()), "wrongly_found": float(wrong.mean()) if len(without) else None}


def _relevances(index: Index, rows: Sequence[Scored], way: str, weight: float) -> tuple[Relevances, Relevances]:
    """The relevance of what is found for questions with an answer, and for those without."""
    values = np.array([_relevance(index, row, row.order(way, weight, READ)) for row in rows])
    has_answer = np.array([bool(row.relevant) for row in rows], bool)
    return values[has_answer], values[~has_answer]


def _relevance(index: Index, row: Scored, chunks: NDArray[np.int64]) -> float:
    """As `Index.relevance`, of a question whose cosines are known."""
    known = row.candidates
    if known.cosines is None:
        return index.relevance_of(row.question.text, chunks.tolist())
    return float(known.cosines[np.searchsorted(known.chunks, chunks)].max(initial=0.0))
