"""A reward model: it learns from comparisons how good an answer is."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.objective import BaseKind
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.tokens import TokenTable
from tunesmith.heads.reward import RewardHead
from tunesmith.heads.sequence_classification import class_logits
from tunesmith.objectives.new_head import NewHeadConfig
from tunesmith.objectives.preference import (
    PairsOfRow,
    RowObjective,
    RowPairs,
    length_bias,
    lengths_of_completions,
    ordered,
    pairs_like,
    row_pairs,
)
from tunesmith.ops.preference_loss import bradley_terry_losses


class Reward(NewHeadConfig):
    """loss = −log σ(r(x, y⁺) − r(x, y⁻)) for the better completion y⁺ and the worse one y⁻ of a prompt x (Bradley &
    Terry 1952; Ouyang et al. 2022, eq. 1). Completions with equal scores are ties: −½ log σ(d) − ½ log σ(−d)."""

    kind: Literal["reward"] = "reward"

    margin: float = Field(default=0.0, ge=0)
    """m: the difference should exceed m times the difference of the rows' scores (Touvron et al. 2023, eq. 2)."""

    centering: float = Field(default=0.0, ge=0)
    """λ: adds λ (r(x, y⁺) + r(x, y⁻))², which holds rewards around 0 (Eisenstein et al. 2023, eq. 3; there 0.01)."""

    pairs: PairsOfRow = "all"
    """Of more than two ranked completions: all pairs, whose mean is the row's loss (Ouyang et al. 2022), or the best
    and the worst."""

    formats: ClassVar[tuple[str, ...]] = ("preference", "ranking")
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder",)
    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "refuse"  # the end is where the answer is
    loss_unit: ClassVar[str] = "nats per row"

    @property
    def head(self) -> RewardHead:
        return RewardHead()

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        return [renderer.completions(example, with_targets=True)]

    def dummy_rows(self, lengths: Sequence[int]) -> TokenTable:
        """Pairs: half of a row is the prompt, a quarter each completion."""
        return pairs_like(lengths, with_targets=True)

    def build(self, references: Sequence[Any] = ()) -> "RewardLoss":
        return RewardLoss(self)


class RewardLoss(RowObjective):
    """A row's loss is the mean over its pairs. Evaluation reports the share of pairs in which the better completion has
    the higher reward, ties half; how much more often the longer completion is ahead than it is the better one; and
    the loss alone: without margin and centering."""

    def __init__(self, config: Reward) -> None:
        self.config = config

    def each_row(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        rewards, pairs = self._rewards(model, batch)
        bias = pairs.mean(length_bias(pairs, rewards, lengths_of_completions(batch)), len(batch.rows))
        return self._figures(rewards, pairs, batch) | {"length_bias": bias}

    def each_row_in_training(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        rewards, pairs = self._rewards(model, batch)
        return self._figures(rewards, pairs, batch, self.config.margin, self.config.centering)

    def _rewards(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, RowPairs]:
        """The reward of each completion (completions,), and the pairs that are compared."""
        assert batch.completions is not None
        rewards = class_logits(model, batch)[:, 0]
        rewards = rewards if rewards.dtype == torch.float64 else rewards.float()
        return rewards, row_pairs(batch.completions, self.config.pairs, rewards.device, with_ties=True)

    def _figures(
        self, rewards: Tensor, pairs: RowPairs, batch: Batch, margin: float = 0.0, centering: float = 0.0
    ) -> dict[str, Tensor]:
        better, worse = rewards[pairs.better], rewards[pairs.worse]
        difference = better - worse
        losses = bradley_terry_losses(difference, pairs.margins == 0, margin * pairs.margins.to(difference.dtype))
        if centering:
            losses = losses + centering * (better + worse).square()
        apart = difference.detach()
        right = torch.where(pairs.margins == 0, 0.5, ordered(apart))
        rows = len(batch.rows)
        return {
            "loss": pairs.mean(losses, rows),
            "accuracy": pairs.mean(right, rows),
            "margin": pairs.mean(apart, rows),
        }
