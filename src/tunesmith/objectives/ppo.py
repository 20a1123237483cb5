"""Proximal policy optimization: rewards spread over tokens by a learned value of what is still to come."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.tokens import TokenTable
from tunesmith.models.forward import loss_hidden_states
from tunesmith.models.token_scores import token_scores
from tunesmith.objectives.completion_rows import StepTotals, column_of, completion_lengths, lengths_of
from tunesmith.objectives.new_head import head_rate
from tunesmith.objectives.policy_gradient import PolicyGradient, PolicyGradientObjective
from tunesmith.objectives.scored import Scored
from tunesmith.ops.policy_loss import clipped_surrogate, gae, token_weights, value_losses, whitened

MOST_ERROR = 0.2
"""Of the adaptive weight of the KL: the relative error counts as at most this (Ziegler et al. 2019, section 2.2)."""


class PPO(PolicyGradient):
    """loss = −min(ρ A, clip(ρ) A) + value_weight · ½ (V − R)² at each token, with A by generalized advantage estimation
    from a value head (Schulman et al. 2017, eq. 9), and a reward of −kl_weight · log(π / π_ref) at each token beside
    that of the completion, at its last one (Ziegler et al. 2019, eq. 2)."""

    kind: Literal["ppo"] = "ppo"

    passes: int = Field(default=4, ge=1)
    """How often a phase's completions are trained on. 4: Ziegler et al. 2019, table 3."""

    clip: float = Field(default=0.2, gt=0)
    """ε: outside of 1 ± ε, ρ has no more gradient."""

    value_clip: float | None = Field(default=0.2, gt=0)
    """How far a value may move from what it was when the completions were sampled; null: as far as it wants."""

    value_weight: float = Field(default=0.1, ge=0)
    """Of the value's loss. 0.1: Ziegler et al. 2019."""

    value_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the value head. Default: 8 / hidden size, at most 0.02, as of other new heads."""

    value_body: Literal["shared", "frozen"] = "shared"
    """Whether the value's loss trains the policy's own layers, too, or its head alone."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """γ: the discount of rewards to come, for each token."""

    lam: float = Field(default=0.95, ge=0, le=1)
    """λ: 1: the rewards that came, less the value before; smaller: rather what the value says of the next tokens."""

    whiten: bool = True
    """Whether the advantages of a phase are shifted and scaled to mean 0 and deviation 1."""

    whiten_rewards: bool = False
    """Whether the rewards of a phase's tokens are scaled to deviation 1, as for rewards of an unknown scale."""

    kl_weight: float = Field(default=0.05, ge=0)
    """β: of the distance to where the run started, in the reward."""

    kl_target: float | None = Field(default=None, gt=0)
    """Adapt β so that the distance of a completion is this, in nats: a tenth of the relative error, up to 20 %, is
    added to it in each phase (Ziegler et al. 2019, section 2.2). Default: β stays."""

    truncated_reward: float | None = None
    """The reward of a completion that was cut, in place of its own. Default: its own."""

    formats: ClassVar[tuple[str, ...]] = ("prompts",)

    @property
    def needs_reference(self) -> bool:
        return self.kl_weight > 0 or self.max_kl is not None

    def head_learning_rate_at(self, hidden: int) -> float:
        return self.value_learning_rate or head_rate(hidden)

    def build(self, references: Sequence[Any] = ()) -> "PPOLoss":
        return PPOLoss(self)


class PPOLoss(PolicyGradientObjective):
    """The clipped surrogate and the value's loss."""

    config: PPO

    def __init__(self, config: PPO) -> None:
        super().__init__(config)
        self.kl_weight = config.kl_weight

    def add_layers(self, model: PreTrainedModel) -> None:
        """A value head that says 0 of everything."""
        value = nn.Linear(model.config.get_text_config().hidden_size, 1, device=model.device)
        nn.init.zeros_(value.weight)
        nn.init.zeros_(value.bias)
        self.layers = value

    def values(self, hidden: Tensor) -> Tensor:
        """(tokens,) the value before each token, from the hidden state that predicts it (tokens, hidden)."""
        assert self.layers is not None
        if self.config.value_body == "frozen":
            hidden = hidden.detach()
        wide = hidden if hidden.dtype == torch.float64 else hidden.float()
        values: Tensor = self.layers(wide)[:, 0]
        return values

    def extra_scores(self, model: PreTrainedModel, hidden: Tensor) -> dict[str, Tensor]:
        return {"value": self.values(hidden)}

    def finish(self, table: TokenTable, scored: Scored, columns: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
        lengths = lengths_of(table, range(len(table)))
        at = table.loss_mask
        total = torch.from_numpy(self._rewards_at_end(scored)).flatten()
        weight = self.kl_weight
        rewards = torch.zeros(sum(lengths), dtype=torch.float64)
        metrics: dict[str, Any] = {}
        if self.config.needs_reference:
            distance = torch.from_numpy((columns["old"] - columns["reference"])[at]).double()
            rewards -= weight * distance
            per_completion = float(distance.sum()) / len(lengths)
            metrics |= {"kl_weight": weight, "kl_completion": per_completion}
            self._adapt(per_completion)
        rewards[torch.tensor(lengths).cumsum(0) - 1] += total
        if self.config.whiten_rewards:
            rewards = whitened(rewards, center=False)
        values = torch.from_numpy(columns["value"][at]).double()
        advantages = torch.cat(
            [
                gae(reward, value, self.config.gamma, self.config.lam)
                for reward, value in zip(torch.split(rewards, lengths), torch.split(values, lengths), strict=True)
            ]
        )
        returns = advantages + values
        unexplained = float((returns - values).var() / returns.var().clamp_min(1e-12)) if len(returns) > 1 else 1.0
        columns["return"] = column_of(table, returns.tolist())
        columns["advantage"] = column_of(table, (whitened(advantages) if self.config.whiten else advantages).tolist())
        return {**metrics, "value": float(values.mean()), "explained_variance": 1 - unexplained}

    def _rewards_at_end(self, scored: Scored) -> NDArray[np.float64]:
        """(prompts, completions)."""
        if self.config.truncated_reward is None:
            return scored.rewards
        cut = np.array([[completion.is_truncated for completion in group] for group in scored.groups])
        return np.where(cut, self.config.truncated_reward, scored.rewards)

    def _adapt(self, distance: float) -> None:
        """β ← β (1 + 0.1 clip((KL − target) / target, ± 0.2))."""
        target = self.config.kl_target
        if target is not None:
            error = min(max((distance - target) / target, -MOST_ERROR), MOST_ERROR)
            self.kl_weight *= 1 + 0.1 * error

    def state(self) -> dict[str, Any]:
        return {**super().state(), "kl_weight": self.kl_weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.kl_weight = state["kl_weight"]

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        hidden, labels = loss_hidden_states(model, batch)
        config, columns, lengths = self.config, batch.columns, completion_lengths(batch)
        scores = token_scores(model, hidden, labels, config.temperature)
        values = self.values(hidden)
        old = columns.get("old", scores.log_probs.detach())
        advantage = columns.get("advantage", torch.ones_like(scores.log_probs))
        before, returns = (columns.get(name, torch.zeros_like(values)) for name in ("value", "return"))
        surrogate = clipped_surrogate(scores.log_probs, old, advantage, config.clip, config.clip)
        of_values = value_losses(values, before, returns, config.value_clip)
        losses = surrogate.losses * columns.get("weight", torch.ones_like(old)) + config.value_weight * of_values
        self.note(
            len(losses),
            clipped=surrogate.clipped.float().mean(),
            ratio=surrogate.ratios.mean(),
            policy_loss=surrogate.losses.mean(),
            value_loss=of_values.mean(),
        )
        step = self.step or StepTotals.of(batch)
        weights = token_weights(lengths, "tokens", config.max_new_tokens, step.tokens, step.completions)
        return step.rows * (losses * weights.to(losses)).sum()
