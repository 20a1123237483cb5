"""What policy gradients share: an expectation over what was sampled, which weighs each token by how likely it was."""

from abc import ABC

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.objectives.policy import PolicyObjective
from tunesmith.objectives.policy_config import PolicyConfig


class PolicyGradient(PolicyConfig, ABC):
    """A policy whose gradient is an expectation over what it samples."""

    max_sampler_weight: float = Field(default=2.0, ge=1)
    """The most that a token's importance weight between the sampler and the trainer may be. Both compute the same
    probabilities up to rounding, so that the weights are 1; the bound holds in 16 bits (Yao et al. 2025)."""


class PolicyGradientObjective(PolicyObjective, ABC):
    """Losses of tokens with importance weights between the sampler and the trainer."""

    def weights(self, own: Tensor, sampled: Tensor) -> Tensor:
        return torch.exp(own - sampled).clamp_max(self.config.max_sampler_weight)
