"""The base class of objectives with a new head: an output for each text, or for each of its words."""

from abc import ABC
from typing import ClassVar, Literal

from pydantic import Field

from tunesmith.config.objective import BaseKind, ObjectiveConfig


def head_rate(hidden: int) -> float:
    """A new head's peak learning rate. It scales with 1 / hidden, the head's fan-in (Yang et al. 2022, table 3)."""
    return min(0.02, 8 / hidden)


class NewHeadConfig(ObjectiveConfig, ABC):
    """An objective with a new head. It truncates long texts: the first words carry most of the information."""

    head_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the new head, independent of `train.learning_rate`. Default: 8 / hidden size, at most 0.02,
    since a head's learning rate scales with 1 / fan-in (Yang et al. 2022, table 3); tuned on MiniLM."""

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "truncate"
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder", "encoder")

    def head_learning_rate_at(self, hidden: int) -> float:
        return self.head_learning_rate or head_rate(hidden)
