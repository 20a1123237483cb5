"""STAND-IN until tunesmith.rewards lands."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from tunesmith.config.extensions import imported
from tunesmith.config.registry import Strict


class RewardTerm(Strict):
    """A reward function and its weight."""

    function: str
    """`exact`, or `module:function`."""

    weight: float = Field(default=1.0)
    """Its factor in the sum."""


def exact(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    return [float(text.strip() == str(own).strip()) for text, own in zip(completions, answer, strict=True)]


def function_named(name: str) -> Callable[..., list[float]]:
    return exact if name == "exact" else imported(name)
