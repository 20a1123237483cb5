"""Direct preference optimization: a policy learns from pairs of a better and a worse completion, without rewards."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.data.batch import BatchCompletions
from tunesmith.objectives.preference import PairsOfRow, Preference, PreferenceObjective, ordered, row_pairs
from tunesmith.ops.preference_loss import WITHOUT_REFERENCE, PairLossName, Pairs, pair_losses

SMOOTHED = ("sigmoid", "robust", "exo_pair", "simpo", "cpo")
"""Losses that `label_smoothing` changes."""


class DPO(Preference):
    """loss = −log σ(β ((log π(y⁺|x) − log ρ(y⁺|x)) − (log π(y⁻|x) − log ρ(y⁻|x)))) for the better completion y⁺ and the
    worse one y⁻ of a prompt x, with the policy π and the reference ρ, which is the model as it starts (Rafailov et al.
    2023, eq. 7); or one of its heirs."""

    kind: Literal["dpo"] = "dpo"

    loss: PairLossName = "sigmoid"
    """Which one: `sigmoid` (DPO), `hinge` (SLiC), `ipo`, `robust`, `exo_pair`, `nca_pair`, `sppo_hard`, `apo_zero`,
    `apo_down`, `discopop`; or, without a reference, `simpo`, `orpo`, `cpo`. docs/preferences.md has their formulas."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """ε: the share of pairs that are assumed to be labeled the wrong way."""

    target_margin: float = Field(default=0.5, ge=0)
    """γ of `simpo`: the margin by which the better completion should win. Default 0.5 (Meng et al. 2024, table 5)."""

    sft_weight: float = Field(default=0.0, ge=0)
    """α: adds α times the better completion's mean loss per token (RPO: Pang et al. 2024; CPO and ORPO use 1)."""

    pairs: PairsOfRow = "all"
    """Of more than two ranked completions: all pairs, whose mean is the row's loss, or the best and the worst."""

    @model_validator(mode="after")
    def _check_options(self) -> "DPO":
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(f"label_smoothing has no effect on loss: {self.loss}. Leave it out")
        if self.target_margin != DPO.model_fields["target_margin"].default and self.loss != "simpo":
            raise ValueError("target_margin is of loss: simpo. Leave it out")
        return self

    def build(self, references: Sequence[Any] = ()) -> "DPOLoss":
        return DPOLoss(self)


class DPOLoss(PreferenceObjective):
    """A row's loss is the mean over its pairs. Evaluation reports the share of pairs in which the policy, compared with
    the reference, prefers the better completion."""

    def __init__(self, config: DPO) -> None:
        self.config = config
        self.needs_reference = config.loss not in WITHOUT_REFERENCE

    def row_figures(self, log_probs: Tensor, tokens: Tensor, batch: BatchCompletions) -> dict[str, Tensor]:
        config = self.config
        pairs = row_pairs(batch, config.pairs, log_probs.device)
        reference = batch.reference if self.needs_reference else torch.zeros_like(log_probs)
        better, worse = pairs.better, pairs.worse
        values = Pairs(
            log_probs[better], log_probs[worse], reference[better], reference[worse], tokens[better], tokens[worse]
        )
        losses = pair_losses(config.loss, values, config.beta, config.label_smoothing, config.target_margin)
        if config.sft_weight:  # of each pair, where TRL's is of all tokens of a batch: it depends on no other pair
            losses = losses - config.sft_weight * values.mean_better
        with torch.no_grad():
            if self.needs_reference:
                up, down = config.beta * values.a, config.beta * values.b
            else:
                up, down = config.beta * values.mean_better, config.beta * values.mean_worse
            others = {
                "accuracy": ordered(up - down),
                "margin": up - down,
                "chosen_reward": up,
                "rejected_reward": down,
            }
        return {name: pairs.mean(each, len(batch.per_row)) for name, each in {"loss": losses, **others}.items()}
