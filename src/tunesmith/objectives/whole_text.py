"""The base class of objectives with a new head. Most of them put it on an encoder's first token or a decoder's last."""

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
    """A new head's peak learning rate. It scales with 1 / hidden, the head's fan-in (Yang et al. 2022, table 3)."""
    return min(0.02, 8 / hidden)


class NewHead(ObjectiveConfig, ABC):
    """An objective with a new head. It truncates long texts: the first words carry most of the information."""

    head_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the new head, independent of `train.learning_rate`. Default: 8 / hidden size, at most 0.02,
    since a head's learning rate scales with 1 / fan-in (Yang et al. 2022, table 3); tuned on MiniLM."""

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "truncate"
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder", "encoder")

    def head_learning_rate_at(self, hidden: int) -> float:
        return self.head_learning_rate or head_rate(hidden)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.unweighted_losses(model, batch).sum()

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.unweighted_losses(model, batch)

    def outputs(self, model: PreTrainedModel, batch: Batch, head: object = None) -> Tensor:
        return head_probabilities(class_logits(model, batch).float(), self.ending)

    @abstractmethod
    def unweighted_losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss of each text or word (units,), without class weights and label smoothing."""
