"""Reward: how good an answer is to its prompt, as one number."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from tunesmith.config.head import Command
from tunesmith.heads.sequence_classification import MultiLabelHead, RegressionHead

LABEL = "reward"
"""The name of the output, by which a stored model's head is known."""


STEP_LABEL = "step"
"""The same, of a process reward model."""


@dataclass(frozen=True)
class RewardHead(RegressionHead):
    """One number for a chat, read at the last token of its answer: transformers' sequence classification with one
    output, as TRL writes it. Only differences between answers to the same prompt have a meaning."""

    kind: ClassVar[str] = "reward"
    commands: ClassVar[tuple[Command, ...]] = ("reward",)
    needs_fp32: ClassVar[bool] = False
    reads_turn_end: ClassVar[bool] = True

    labels: tuple[str, ...] = (LABEL,)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("pair_calibration_error",)

    def targets(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values.reshape(-1, 1)

    def configure(self, config: PretrainedConfig) -> None:
        super().configure(config)
        config.problem_type = self.problem_type

    def describe_target(self, target: NDArray[np.float32]) -> str:
        return ", ".join(f"{value:.4g}" for value in target)

    def describe(self, output: NDArray[np.float32]) -> str:
        return ", ".join(f"{value:.4g}" for value in np.ravel(output))

    def dummy_rows(self, lengths: Sequence[int]) -> Any:
        return None


@dataclass(frozen=True)
class ProcessRewardHead(RewardHead):
    """Whether each step of an answer is right, as a logit at the step's last token."""

    kind: ClassVar[str] = "process_reward"

    labels: tuple[str, ...] = (STEP_LABEL,)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ()

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability that the step is right."""
        return torch.sigmoid(logits)


ABOVE = re.compile(r"(.+) > (-?\d+)")
"""The name of an output of a graded reward model: an attribute, and the grade that the answer's is above."""


def label_of(attribute: str, grade: int) -> str:
    """The name of the output for this attribute and grade."""
    return f"{attribute} > {grade}"


@dataclass(frozen=True)
class GradedRewardHead(MultiLabelHead):
    """The probability that an answer's grade is above each grade, for one attribute or several."""

    kind: ClassVar[str] = "graded_reward"
    commands: ClassVar[tuple[Command, ...]] = ("reward",)
    has_probabilities: ClassVar[bool] = False
    reads_turn_end: ClassVar[bool] = True

    @property
    def metrics(self) -> tuple[str, ...]:
        return ()

    def grades(self, above: Sequence[float]) -> dict[str, float]:
        """The expected grade of each attribute.

        Args:
            above: the head's outputs for an answer, one for each label.
        """
        found: dict[str, float] = {}
        for label, probability in zip(self.labels, above, strict=True):
            attribute, grade = ABOVE.fullmatch(label).groups()  # type: ignore[union-attr]
            found[attribute] = found.get(attribute, float(grade)) + float(probability)
        return found

    def describe(self, output: NDArray[np.float32]) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in self.grades(np.ravel(output).tolist()).items())

    def describe_target(self, target: NDArray[np.float32]) -> str:
        return self.describe(target)
