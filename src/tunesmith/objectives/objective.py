"""What an `ObjectiveConfig` builds for a run: the losses, and the models beside the trained one."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.pack import Batch


class Objective(ABC):
    """Computes losses."""

    reference_models: tuple[PreTrainedModel, ...] = ()
    """Other models that stay loaded beside the trained one."""

    @abstractmethod
    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The *sum* of the losses over a batch's loss positions.

        Args:
            model: in training mode.
            batch: on the model's device.

        Returns:
            A scalar in nats, with gradients.
        """

    @abstractmethod
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss at each loss position. It evaluates: it leaves out what only helps training, such as class weights
        and smoothing.

        Args:
            model: in evaluation mode.
            batch: on the model's device.

        Returns:
            (loss positions,) in the order of the batch, without gradients.
        """

    def fit_classifier(self, vectors: Callable[[], tuple[NDArray[Any], NDArray[Any]]]) -> nn.Linear | None:
        """After the last step: fit a classifier on the trained model's vectors, if the objective needs one.

        Args:
            vectors: returns the vectors of all training rows (rows, hidden) and their targets (rows, values).

        Returns:
            The classifier; None if the objective needs none.
        """
        return None


class SumOfLosses(Objective):
    """An objective whose training loss is the sum of its evaluation's losses."""

    @abstractmethod
    def each_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss at each loss position (loss positions,), with gradients."""

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.each_loss(model, batch).sum()

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.each_loss(model, batch)
