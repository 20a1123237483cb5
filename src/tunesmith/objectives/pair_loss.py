"""What DPO on given pairs and on the policy's own samples share: the loss of a pair, and what is reported of it."""

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.config.registry import Strict
from tunesmith.objectives.preference import ordered
from tunesmith.ops.preference_loss import WITHOUT_REFERENCE, PairLossName, Pairs, pair_losses

SMOOTHED = ("sigmoid", "robust", "exo_pair", "simpo", "cpo")
"""Losses that `label_smoothing` changes."""


class PairLoss(Strict):
    """Which loss a pair of a better and a worse completion has."""

    loss: PairLossName = "sigmoid"
    """Which one: `sigmoid` (DPO), `hinge` (SLiC), `ipo`, `robust`, `exo_pair`, `nca_pair`, `sppo_hard`, `apo_zero`,
    `apo_down`, `discopop`; or, without a reference, `simpo`, `orpo`, `cpo`. docs/preferences.md has their formulas."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """ε: the share of pairs that are assumed to be labeled the wrong way."""

    target_margin: float = Field(default=0.5, ge=0)
    """γ of `simpo`: the margin by which the better completion should win. Default 0.5 (Meng et al. 2024, table 5)."""

    sft_weight: float = Field(default=0.0, ge=0)
    """α: adds α times the better completion's mean loss per token (RPO: Pang et al. 2024; CPO and ORPO use 1)."""

    @model_validator(mode="after")
    def _check_options(self) -> "PairLoss":
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(f"label_smoothing has no effect on loss: {self.loss}. Leave it out")
        if self.target_margin != PairLoss.model_fields["target_margin"].default and self.loss != "simpo":
            raise ValueError("target_margin is of loss: simpo. Leave it out")
        return self

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with a reference."""
        return self.loss not in WITHOUT_REFERENCE


def pair_figures(config: Any, pairs: Pairs) -> dict[str, Tensor]:
    """The loss of each pair (pairs,), and how much the policy prefers the better completion.

    Args:
        config: a `PairLoss` with `beta`.
        pairs: log-probabilities.

    Returns:
        `loss`, `accuracy`, `margin`, `chosen_reward` and `rejected_reward` (pairs,); `loss` with gradients.
    """
    losses = pair_losses(config.loss, pairs, config.beta, config.label_smoothing, config.target_margin)
    if config.sft_weight:  # of each pair, where TRL's is of all tokens of a batch: it depends on no other pair
        losses = losses - config.sft_weight * pairs.mean_better
    with torch.no_grad():
        if config.has_reference:
            up, down = config.beta * pairs.a, config.beta * pairs.b
        else:
            up, down = config.beta * pairs.mean_better, config.beta * pairs.mean_worse
    return {
        "loss": losses,
        "accuracy": ordered(up - down),
        "margin": up - down,
        "chosen_reward": up,
        "rejected_reward": down,
    }
