"""The share of answers in a style, by a small classifier trained on the user's own examples of it and of the opposite.

A logistic regression on n-grams of characters within words: enough for tone, register, formatting and house words, and
trained in a second. How often it errs is measured by cross-validation on the examples, is a part of the explanation,
and corrects the share (Rogan & Gladen 1978).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import UserError
from tunesmith.metrics.metric import Case, Metric
from tunesmith.statistics.intervals import wilson
from tunesmith.statistics.measured import Measured

FOLDS = 5
FEWEST = 10
"""Examples of each side. With fewer, the error rates say nothing."""

USELESS = 0.2
"""Below this difference of the two rates, a classifier does not know the style, and nothing can be corrected by it."""


@dataclass(frozen=True)
class StyleClassifier:
    """A trained classifier, and how often it errs.

    Attributes:
        pipeline: scikit-learn's, trained on all examples.
        found: the share of examples in the style that it finds, on folds that it was not trained on.
        mistaken: the share of other examples that it takes for the style, on such folds.
        examples: how many examples in the style and how many others there are.
    """

    pipeline: Any
    found: float
    mistaken: float
    examples: tuple[int, int]

    @classmethod
    def trained(cls, examples: Sequence[str], others: Sequence[str]) -> "StyleClassifier":
        """Train it, and measure its errors by five-fold cross-validation.

        Args:
            examples: texts in the style.
            others: texts that are not.

        Returns:
            The classifier.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline

        texts = [*examples, *others]
        labels = np.array([1] * len(examples) + [0] * len(others))
        pipeline = make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), lowercase=False, sublinear_tf=True),
            LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000),
        )
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        predicted = cross_val_predict(pipeline, texts, labels, cv=folds)
        pipeline.fit(texts, labels)
        found, mistaken = float(predicted[labels == 1].mean()), float(predicted[labels == 0].mean())
        return cls(pipeline, found, mistaken, (len(examples), len(others)))

    def in_style(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Whether texts are classified as in the style.

        Args:
            texts: any texts.

        Returns:
            (texts,) 0 or 1; an empty text is not in the style.
        """
        hits: NDArray[np.float64] = self.pipeline.predict(list(texts)).astype(np.float64)
        empty = np.array([not text.strip() for text in texts])
        return np.where(empty, 0.0, hits)

    def corrected(self, share: float) -> float:
        """The share in the style, from the share that is classified so (Rogan & Gladen 1978).

        Args:
            share: of texts that are classified as in the style.

        Returns:
            (share − mistaken) / (found − mistaken), within [0, 1].
        """
        return min(1.0, max(0.0, (share - self.mistaken) / (self.found - self.mistaken)))


def style_metric(file: str, directory: Path) -> Metric:
    """The share of answers in the style of a user's examples, corrected by the classifier's errors.

    Args:
        file: JSONL rows with `text` and `in_style` (true or false), at least ten of each.
        directory: from which the file's path starts.

    Returns:
        The metric. The rows' uncertainty is in its interval; that of the error rates is in its explanation.

    Raises:
        UserError: the file cannot be read, has too few examples, or its two sides cannot be distinguished.
    """
    path = directory / file
    examples, others = _examples(path)
    if min(len(examples), len(others)) < FEWEST:
        raise UserError(
            f"{path} has {len(examples)} texts with in_style true and {len(others)} with false. "
            f"Give at least {FEWEST} of each."
        )
    classifier = StyleClassifier.trained(examples, others)
    if classifier.found - classifier.mistaken < USELESS:
        raise UserError(
            f"{path}: a classifier of these examples finds {classifier.found:.0%} of those in the style, and takes "
            f"{classifier.mistaken:.0%} of the others for it, so it does not know the style. "
            "Give more or clearer examples."
        )
    explanation = (
        f"answers in the style of {path.name}, by a classifier that finds {_rate(classifier.found, len(examples))} of "
        f"its examples and mistakes {_rate(classifier.mistaken, len(others))} of the others for it; corrected by these "
        "rates"
    )
    score, figure = partial(_is_in_style, classifier), partial(_share_in_style, classifier)
    return Metric("in style", explanation, score, figure=figure)


def _is_in_style(classifier: StyleClassifier, answer: str, expected: str) -> float:
    """As classified, not corrected."""
    return float(classifier.in_style([answer])[0])


def _share_in_style(classifier: StyleClassifier, metric: Metric, cases: Sequence[Case]) -> Measured:
    hits = classifier.in_style([case.answer for case in cases])

    def of(rows: NDArray[np.int64]) -> float:
        return classifier.corrected(float(hits[rows].mean()))

    return Measured(metric.title, metric.explanation, of, [case.source for case in cases])


def _rate(share: float, rows: int) -> str:
    low, high = wilson(share, rows)
    return f"{share:.0%} ({low:.0%}–{high:.0%})"


def _examples(path: Path) -> tuple[list[str], list[str]]:
    """The texts in the style, and the others."""
    sides: dict[bool, list[str]] = {True: [], False: []}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. --metric style:FILE needs JSONL rows of text and in_style."
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            sides[row["in_style"]].append(str(row["text"]))
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f'{path} row {number:,} is not of the form {{"text": "…", "in_style": true}} (or false). Correct it.'
            ) from None
    return sides[True], sides[False]
