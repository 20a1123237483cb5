"""What an `ObjectiveConfig` builds for a run: the losses, and the models beside the trained one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.tokens import TokenTable
from tunesmith.objectives.rollouts import Collected, Phase


class Objective(ABC):
    """Computes losses."""

    reference_models: tuple[PreTrainedModel, ...] = ()
    """Other models that stay loaded beside the trained one."""

    is_per_token: bool = True
    """Whether its loss is one of text, per token, so that a head may report its perplexity."""

    layers: nn.Module | None = None
    """What is trained beside the model and not saved with it, once `add_layers` has been called."""

    needs_reference: bool = False
    """Whether it compares with what the starting model says of the rows (`reference`)."""

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

    def figures(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """What an evaluation reports of a batch.

        Args:
            model: in evaluation mode.
            batch: on the model's device.

        Returns:
            `loss`, as `losses` gives it, and other values at each loss position (loss positions,), by name; without
            gradients. They are reported as means.
        """
        return {"loss": self.losses(model, batch)}

    def reference(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """What the starting model says of a batch. It is computed once, before the first step, so that no second model
        is needed.

        Args:
            model: before the first step, in evaluation mode.
            batch: on the model's device.

        Returns:
            (completions,) as `Batch.completions.reference` has them later, without gradients.

        Raises:
            NotImplementedError: the objective needs none.
        """
        raise NotImplementedError

    def note(self, units: int, **means: Tensor) -> None:
        """Note figures of a batch in training, for the event of the step.

        Args:
            units: how many loss positions the means are of.
            means: scalars by name.
        """
        notes = self.__dict__.setdefault("_notes", [])
        notes.append((units, {name: mean.detach() for name, mean in means.items()}))

    def take_notes(self) -> dict[str, float]:
        """What was noted since the last call.

        Returns:
            The means over all batches, by name.
        """
        notes = self.__dict__.pop("_notes", [])
        total = sum(units for units, _ in notes)
        names = dict.fromkeys(name for _, means in notes for name in means)
        return {name: sum(units * float(means[name]) for units, means in notes) / total for name in names}

    def add_layers(self, model: PreTrainedModel) -> None:  # noqa: B027  # most need none
        """Make `layers`.

        Args:
            model: with the method applied.
        """

    def collect(self, phase: Phase) -> Collected:
        """Sample what the next optimizer steps are trained on. Only for objectives whose config has `rollouts`.

        Args:
            phase: what to sample from, and how.

        Returns:
            The rows of the steps.

        Raises:
            UserError: the run cannot go on.
        """
        raise NotImplementedError

    def evaluate(self, phase: Phase) -> dict[str, Any]:
        """How good the answers to held-out prompts are. Only for objectives whose config has `rollouts`.

        Args:
            phase: with the held-out prompts.

        Returns:
            For an evaluation's event: at least a `loss`, which is to fall.
        """
        raise NotImplementedError

    def begin_step(self, table: TokenTable, rows: Sequence[int]) -> None:  # noqa: B027  # most need nothing
        """Before the batches of an optimizer step: take from all of its rows what a loss depends on besides its batch.

        Args:
            table: of the rows.
            rows: of the step.
        """

    def check_step(self) -> dict[str, Any]:
        """After the batches of an optimizer step, and before the weights change.

        Returns:
            Further figures for the step's event.

        Raises:
            UserError: what the batches showed is a reason not to change them.
        """
        return {}

    def stop_reason(self) -> str | None:
        """Asked after each step: whether the run ends now.

        Returns:
            Why; None: it continues.
        """
        return None

    def state(self) -> dict[str, Any]:
        """What changes during a run, besides weights.

        Returns:
            It, as plain JSON values.
        """
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # most objectives have no state
        """Continue a run.

        Args:
            state: as the method of that name returned it.
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
