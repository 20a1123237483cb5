"""A process reward model: it learns whether each step of an answer is right."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel

from tunesmith.config.objective import BaseKind
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.heads.reward import ProcessRewardHead
from tunesmith.heads.sequence_classification import class_logits
from tunesmith.objectives.new_head import NewHeadConfig
from tunesmith.objectives.objective import SumOfLosses


class ProcessReward(NewHeadConfig):
    """loss = −y log σ(h) − (1 − y) log σ(−h) at the last token of each step, y = 1 where the step is right (Lightman et
    al. 2023, "Let's verify step by step", section 2.6)."""

    kind: Literal["process_reward"] = "process_reward"

    formats: ClassVar[tuple[str, ...]] = ("steps",)
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder",)
    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "refuse"
    loss_unit: ClassVar[str] = "nats per step"

    @property
    def head(self) -> ProcessRewardHead:
        return ProcessRewardHead()

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        assert isinstance(example.label, tuple)
        return [renderer.steps(example, tuple(map(float, example.label)))]

    def build(self, references: Sequence[Any] = ()) -> "ProcessRewardLoss":
        return ProcessRewardLoss()


class ProcessRewardLoss(SumOfLosses):
    """Binary cross-entropy of each step. Evaluation also reports the share of steps on the right side of ½."""

    def each_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = class_logits(model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return binary_cross_entropy_with_logits(logits, batch.labels.to(logits.dtype), reduction="none")[:, 0]

    @torch.no_grad()
    def figures(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        logits = class_logits(model, batch).float()
        return {
            "loss": self.each_loss(model, batch),
            "accuracy": ((logits > 0) == (batch.labels > 0.5)).float()[:, 0],
        }
