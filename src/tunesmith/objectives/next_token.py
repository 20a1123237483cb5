"""What objectives of written text share: the next token, where it is learnt."""

from abc import ABC

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.registry import ObjectiveConfig
from tunesmith.data.pack import Batch
from tunesmith.models.forward import next_token_loss, next_token_losses


class NextToken(ObjectiveConfig, ABC):
    """loss = −Σ log p(xₜ | x₍<t₎) over the learnt tokens. Evaluation takes this alone, without what regularizes."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ε: learn (1 − ε) of the token and ε / vocabulary of every other (Szegedy et al. 2016, section 7). 0: a language
    model's probabilities are used as they are, and smoothing flattens them."""

    z_loss: float = Field(default=0.0, ge=0)
    """λ of λ (log Z)² a token, Z being the softmax's sum (Chowdhery et al. 2022, section 5: 1e-4). 0: what drifts in
    long pretraining does not in a fine-tuning."""

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return next_token_loss(model, batch, self.label_smoothing, self.z_loss)

    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return next_token_losses(model, batch)
