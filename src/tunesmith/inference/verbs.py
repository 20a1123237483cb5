"""The verbs that use a model, as functions: each loads it, for one call."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.example import Message
from tunesmith.heads.prediction import Prediction
from tunesmith.inference.model import load
from tunesmith.inference.score import Score
from tunesmith.inference.writing import Generation


class GenerateOptions(TypedDict, total=False):
    """The options of `Model.generate`, which explains them."""

    system: str | None
    raw: bool
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str]
    schema: str | Mapping[str, Any] | None
    regex: str | None
    grammar: str | None
    n: int
    best_of: int | None
    beams: int
    top_logprobs: int
    seed: int
    adapter: str | None
    draft: str | None


class ChatOptions(TypedDict, total=False):
    """The options of `Model.chat`, which explains them."""

    write: Callable[[str], None] | None
    max_new_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    seed: int
    adapter: str | None


def generate(
    model: str | Path,
    prompts: str | Sequence[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    **options: Unpack[GenerateOptions],
) -> list[Generation]:
    """`Model.generate` in one call, which loads the model each time. For several calls, `load` it once.

    Args:
        model: as in `load`.
        prompts: a question, or several.
        device: as in `load`.
        precision: as in `load`.
        options: the other arguments of `Model.generate`, such as `max_new_tokens`.

    Returns:
        The answers.

    Raises:
        UserError: as `load` and `Model.generate` raise.
    """
    return load(model, device, precision).generate(prompts, **options)


def chat(
    model: str | Path,
    messages: Sequence[Message],
    *,
    device: str = "auto",
    precision: str = "auto",
    **options: Unpack[ChatOptions],
) -> str:
    """`Model.chat` in one call, which loads the model each time. For several calls, `load` it once.

    Args:
        model: as in `load`.
        messages: `role` and `content` of each turn, the user's last.
        device: as in `load`.
        precision: as in `load`.
        options: the other arguments of `Model.chat`, such as `temperature`.

    Returns:
        The answer.

    Raises:
        UserError: as `load` and `Model.chat` raise.
    """
    return load(model, device, precision).chat(messages, **options)


def classify(
    model: str | Path, texts: str | Sequence[str], *, device: str = "auto", precision: str = "auto"
) -> list[list[Prediction]]:
    """`Model.classify` in one call, which loads the model each time. For several calls, `load` it once.

    Args:
        model: as in `load`.
        texts: a text, or several.
        device: as in `load`.
        precision: as in `load`.

    Returns:
        The predictions for each text.

    Raises:
        UserError: as `load` and `Model.classify` raise.
    """
    return load(model, device, precision).classify(texts)


def embed(
    model: str | Path, texts: str | Sequence[str], *, device: str = "auto", precision: str = "auto"
) -> NDArray[np.float32]:
    """`Model.embed` in one call, which loads the model each time. For several calls, `load` it once.

    Args:
        model: as in `load`.
        texts: a text, or several.
        device: as in `load`.
        precision: as in `load`.

    Returns:
        The vectors (texts, hidden).

    Raises:
        UserError: as `load` and `Model.embed` raise.
    """
    return load(model, device, precision).embed(texts)


def score(
    model: str | Path,
    prompts: str | Sequence[str],
    completions: str | Sequence[str] | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
) -> list[Score]:
    """`Model.score` in one call, which loads the model each time. For several calls, `load` it once.

    Args:
        model: as in `load`.
        prompts: a question, or several.
        completions: the answer to each; default: the prompts are scored as texts.
        device: as in `load`.
        precision: as in `load`.

    Returns:
        The log-probabilities of each text.

    Raises:
        UserError: as `load` and `Model.score` raise.
    """
    return load(model, device, precision).score(prompts, completions)
