"""Answers of a model that a test has made."""

from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.inference.generate import Generator
from tunesmith.inference.sampling import Sampling


def answers(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Any],
    sampling: Sampling,
    concurrent: int = 64,
    done: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """The answer to each chat; the model's layers are replaced in place."""
    return Generator(model, tokenizer, concurrent).answers(chats, sampling, done)


def stream(model: Any, tokenizer: Any, text: str, sampling: Sampling, write: Callable[[str], None]) -> str:
    """The text's continuation, written piece by piece."""
    return Generator(model, tokenizer).stream(text, sampling, write).text
