"""Kahneman–Tversky optimization: a policy learns from completions that are good or bad, one at a time."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from tunesmith.data.batch import BatchCompletions
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.objectives.preference import Preference, PreferenceObjective
from tunesmith.ops.preference_loss import kto_losses


class KTO(Preference):
    """loss = λ_D (1 − σ(β (r − z₀))) for a good completion and λ_U (1 − σ(β (z₀ − r))) for a bad one, with
    r = log π(y|x) − log ρ(y|x) (Ethayarajh et al. 2024, eq. 8).

    z₀ estimates KL(π ‖ ρ): the mean of r over the batch's prompts, each with the completion of the next row, and at
    least 0. So a row's loss depends a little on its batch. Pairs are read as a good and a bad completion."""

    kind: Literal["kto"] = "kto"

    desirable_weight: float = Field(default=1.0, ge=0)
    """λ_D. With unequal numbers of good and bad rows, λ_D · good / (λ_U · bad) should be between 1 and 4/3 (section
    4.2)."""

    undesirable_weight: float = Field(default=1.0, ge=0)
    """λ_U: the weight of bad completions."""

    baseline: Literal["kl", "zero"] = "kl"
    """z₀: an estimate of the KL divergence, which costs a second completion a row; or zero (`apo_zero_unpaired` in TRL;
    D'Oosterlinck et al. 2024)."""

    formats: ClassVar[tuple[str, ...]] = ("rating", "preference")

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        """Each completion is a row of its own."""
        return [renderer.completions(replace(example, completions=(each,))) for each in example.completions]

    def arrange(self, table: TokenTable) -> TokenTable:
        """Give each row a second completion: the next row's, which does not belong to it. (TRL: the previous one's of
        the batch.)"""
        if self.baseline == "zero" or len(table) < 2 or table.completions is None:
            return table
        longest = int(table.text_lengths.max())  # no text gets longer than those that the rows hold
        rows: list[Tokens] = []
        for index in range(len(table)):
            (shared, own), (score,) = table.completions.of(index)
            following = (index + 1) % len(table)
            other = slice(table.completions.of(following)[0][0], None)
            ids, mask = (
                np.concatenate([mine, next_one[other][: longest - shared]])
                for mine, next_one in zip(table[index], table[following], strict=True)
            )
            lengths = (shared, own, len(ids) - shared - own)
            rows.append((ids, mask, table.source(index), None, (lengths, (score, math.nan))))
        return TokenTable.build(rows)

    def build(self, references: Sequence[Any] = ()) -> "KTOLoss":
        return KTOLoss(self)


class KTOLoss(PreferenceObjective):
    """Evaluation reports β r of the good and of the bad completions, and the share on the right side of z₀."""

    def __init__(self, config: KTO) -> None:
        self.config = config

    def row_figures(self, log_probs: Tensor, tokens: Tensor, batch: BatchCompletions) -> dict[str, Tensor]:
        config = self.config
        ratios = log_probs - batch.reference
        own = [index for index, score in enumerate(batch.scores) if not math.isnan(score)]
        others = [index for index, score in enumerate(batch.scores) if math.isnan(score)]
        baseline = ratios[others].detach().mean().clamp(min=0) if others else ratios.new_zeros(())
        is_good = torch.tensor([batch.scores[index] > 0 for index in own], device=ratios.device)
        ratios = ratios[own]
        weights = (config.desirable_weight, config.undesirable_weight)
        with torch.no_grad():
            right = torch.where(is_good, ratios > baseline, ratios < baseline).to(ratios.dtype)
            reward = config.beta * ratios.detach()
        return {
            "loss": kto_losses(ratios, is_good, baseline, config.beta, weights),
            "accuracy": right,
            "margin": torch.where(is_good, reward, -reward),
            "kl": baseline.expand(len(own)),
        }
