"""The next-token loss that the text-generation objectives share."""

from abc import ABC
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.head import Head
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.data.batch import Batch
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.models.forward import next_token_loss, next_token_losses
from tunesmith.objectives.objective import Objective


class NextToken(ObjectiveConfig, ABC):
    """loss = −Σ log p(xₜ | x₍<t₎) over the loss tokens. Evaluation uses only this: no smoothing, no z-loss."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ε: the target is (1 − ε) onehot + ε / vocabulary (Szegedy et al. 2016, section 7). Default 0: a language model's
    probabilities are used as they are, and smoothing flattens them."""

    z_loss: float = Field(default=0.0, ge=0)
    """λ: adds λ (log Z)² per token, where Z is the softmax's sum (Chowdhery et al. 2022, section 5: 1e-4). Default 0:
    logits drift in long pretraining, not in fine-tuning."""

    @property
    def head(self) -> Head:
        return CausalLMHead()

    def build(self, references: Sequence[Any] = ()) -> "NextTokenLoss":
        return NextTokenLoss(self.label_smoothing, self.z_loss)


class NextTokenLoss(Objective):
    """−log p(next token), with label smoothing and z-loss in training."""

    def __init__(self, smoothing: float, z_loss: float) -> None:
        self.smoothing, self.z_loss = smoothing, z_loss

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return next_token_loss(model, batch, self.smoothing, self.z_loss)

    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return next_token_losses(model, batch)
