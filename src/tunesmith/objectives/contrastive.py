"""Objectives that compare the vectors of a batch's texts with each other."""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.registry import BaseKind, ObjectiveConfig
from tunesmith.data.pack import Batch
from tunesmith.ending import Pooling
from tunesmith.models.heads import vectors


class Contrastive(ObjectiveConfig):
    """A loss per row of a batch, from the vectors of all its texts."""

    pooling: Pooling = "mean"
    """How a text's last hidden states become its vector: their mean, the first one, or the last one (for decoders)."""

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "truncate"
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder", "encoder")
    rate_factor: ClassVar[float] = 0.3  # sentence encoders need small steps; tuned on MiniLM, 8 and 64 rows per class

    @abstractmethod
    def row_losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss of each row of the batch (rows,), with gradients."""

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.row_losses(model, batch).sum()

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.row_losses(model, batch)

    def outputs(self, model: PreTrainedModel, batch: Batch, head: object = None) -> Tensor:
        return vectors(model, batch, self.ending)
