"""What objectives share that tell something of a whole text, through a new head on an encoder's first token or a
decoder's last."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.registry import BaseKind, ObjectiveConfig
from tunesmith.data.pack import Batch
from tunesmith.models.heads import class_logits, head_probabilities


def head_rate(hidden: int) -> float:
    """A new head's peak rate: it goes with the reciprocal of what the head reads (Yang et al. 2022, table 3)."""
    return min(0.02, 8 / hidden)


class NewHead(ObjectiveConfig, ABC):
    """A new head's objective: over-long texts are cut, since the first words tell the most of a text's class."""

    head_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the new head, whatever `train.learning_rate` is. Default: 8 / hidden size, at most 0.02, as
    a head's rate goes with the reciprocal of what it reads (Yang et al. 2022, table 3); tried on MiniLM."""

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "truncate"
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder", "encoder")

    def head_learning_rate_at(self, hidden: int) -> float:
        return self.head_learning_rate or head_rate(hidden)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.plain_losses(model, batch).sum()

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.plain_losses(model, batch)

    def outputs(self, model: PreTrainedModel, batch: Batch, head: object = None) -> Tensor:
        return head_probabilities(class_logits(model, batch).float(), self.ending)

    @abstractmethod
    def plain_losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss of each learnt unit without what regularizes or weighs."""
