"""Group relative policy optimization, and what has been changed about it since: rewards compared within a group."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.models.forward import loss_hidden_states
from tunesmith.models.token_scores import token_scores
from tunesmith.objectives.completion_rows import StepTotals, column_of, completion_lengths, lengths_of
from tunesmith.objectives.policy_gradient import PolicyGradient, PolicyGradientObjective
from tunesmith.objectives.rollouts import Phase
from tunesmith.objectives.scored import Scored
from tunesmith.ops.policy_loss import Advantage, advantages, clipped_surrogate, k3, suffix_sums, token_weights


class GRPO(PolicyGradient):
    """loss = −min(ρ A, clip(ρ) A) + beta · KL(π ‖ π_ref) at each token, with ρ = π / π_old and A a completion's reward
    compared with others of the same prompt (Shao et al. 2024, eq. 3)."""

    kind: Literal["grpo"] = "grpo"

    group_size: int = Field(default=8, ge=2)
    """Completions of each prompt. 8: of a prompt that is solved one time in four, nine groups in ten have a
    difference."""

    advantage: Advantage = "group"
    """How rewards become advantages. `group`: (r − mean) / std of the group. `group_mean`: r − mean (Dr. GRPO): prompts
    that are nearly always or never solved weigh no more than others. `group_rate`: (r − mean) / mean (MaxRL), for
    rewards from 0 on: one right answer of eight weighs as much as seven of eight, before the mean is subtracted, so
    that hard prompts count more. `leave_one_out`: r − mean of the others (RLOO). `batch`: (r − mean) / std over the
    phase (REINFORCE++). `group_batch`: r − mean of the group, then / std over the phase."""

    importance: Literal["token", "sequence"] = "token"
    """ρ of each token, or the geometric mean over the completion (GSPO)."""

    clip: float = Field(default=0.2, gt=0)
    """ε: below 1 − ε, ρ has no more gradient. With one optimizer step in a phase, ρ is 1 and nothing is clipped."""

    clip_high: float | None = Field(default=None, gt=0)
    """ε above 1; default: `clip`. A larger one lets unlikely tokens become likely (DAPO: 0.28)."""

    normalization: Literal["tokens", "sequences", "constant"] = "tokens"
    """`tokens`: the mean over all tokens of the step (DAPO). `sequences`: the mean over completions of each one's mean
    (GRPO), in which a long wrong answer costs less per token. `constant`: their sum by `max_new_tokens` (Dr. GRPO)."""

    beta: float = Field(default=0.0, ge=0)
    """Weight of the distance to where the run started. 0: rewards that can be checked need none, and no reference has
    to be computed; with a learned reward, 0.04 (Shao et al. 2024)."""

    kl_in: Literal["loss", "reward"] = "loss"
    """Where the distance enters. `loss`: the k3 estimator at each token. `reward`: log(π / π_ref) of each token is
    subtracted from the rewards of the tokens before it and its own (REINFORCE++, RLOO)."""

    resampling: int = Field(default=0, ge=0)
    """Dynamic sampling (DAPO): groups without a difference are replaced by those of other prompts, in at most this many
    further rounds. 0: they stay, and train nothing."""

    skip_truncated: bool = False
    """Whether completions that were cut have no loss (DAPO, overlong filtering)."""

    @model_validator(mode="after")
    def _rate_is_of_rewards(self) -> "GRPO":
        if self.advantage == "group_rate" and self.beta and self.kl_in == "reward":
            raise ValueError("advantage: group_rate needs rewards from 0 on, without a distance. Set kl_in: loss")
        return self

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0 or self.max_kl is not None

    def build(self, references: Sequence[Any] = ()) -> "GRPOLoss":
        return GRPOLoss(self)


class GRPOLoss(PolicyGradientObjective):
    """The clipped surrogate of group-relative advantages."""

    config: GRPO

    @property
    def compares_in_step(self) -> bool:
        return self.config.rollouts.updates == 1 and not self.config.needs_reference

    def sampled(self, phase: Phase) -> Scored:
        scored = super().sampled(phase)
        for number in range(1, self.config.resampling + 1):
            alive = np.flatnonzero(~scored.is_dead)
            missing = len(phase.rows) - len(alive)
            if not missing:
                break
            more = self.draw(phase, phase.more_rows(number)[:missing], number)
            fresh = more.taken(np.flatnonzero(~more.is_dead).tolist())
            dead = np.flatnonzero(scored.is_dead)
            kept = [*alive, *dead[: missing - len(fresh.rows)]]
            scored = scored.taken([int(index) for index in kept]).with_others(fresh)
        return scored

    def finish(self, table: TokenTable, scored: Scored, columns: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
        lengths = lengths_of(table, range(len(table)))
        counts = torch.tensor(lengths)
        at = table.loss_mask
        rewards = torch.from_numpy(scored.rewards)
        if self.config.advantage == "group_rate" and (lowest := float(rewards.min())) < 0:
            raise UserError(
                f"advantage: group_rate needs rewards from 0 on, and one is {lowest:.3g}. Choose another advantage, or "
                "functions that give no negative rewards."
            )
        how, beta = self.config.advantage, self.config.beta if self.config.kl_in == "reward" else 0.0
        if beta and how == "batch":  # a return at each token, normalized over all tokens
            distance = torch.from_numpy((columns["old"] - columns["reference"])[at]).double()
            returns = torch.repeat_interleave(rewards.flatten(), counts) - beta * suffix_sums(distance, lengths)
            each = advantages(returns[None], how)[0]
        else:
            if beta:
                distance = torch.from_numpy((columns["old"] - columns["reference"])[at]).double()
                sums = torch.stack([part.sum() for part in torch.split(distance, lengths)])
                rewards = rewards - beta * sums.view_as(rewards)
            each = torch.repeat_interleave(advantages(rewards, how).flatten(), counts)
        columns["advantage"] = column_of(table, each.tolist())
        if self.config.skip_truncated:
            cut = [completion.is_truncated for group in scored.groups for completion in group]
            columns["weight"][at] *= np.repeat(~np.asarray(cut), lengths)
        return {}

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        hidden, labels = loss_hidden_states(model, batch)
        scores = token_scores(model, hidden, labels, self.config.temperature)
        config, columns, lengths = self.config, batch.columns, completion_lengths(batch)
        old = columns.get("old", scores.log_probs.detach())
        advantage = columns.get("advantage", torch.ones_like(scores.log_probs))
        high = config.clip if config.clip_high is None else config.clip_high
        by_sequence = lengths if config.importance == "sequence" else None
        surrogate = clipped_surrogate(scores.log_probs, old, advantage, config.clip, high, by_sequence)
        losses = surrogate.losses * columns.get("weight", torch.ones_like(old))
        if "sampled" in columns:
            losses = losses * self.weights(scores.plain, columns["sampled"])
            self.passed(columns["sampled"], scores)
        shown = {"clipped": surrogate.clipped.float().mean(), "ratio": surrogate.ratios.mean()}
        if config.beta and config.kl_in == "loss":
            distance = k3(scores.log_probs, columns.get("reference", old))
            losses = losses + config.beta * distance
            shown["kl_loss"] = distance.mean()
        self.note(len(losses), **shown)
        step = self.step or StepTotals.of(batch)
        weights = token_weights(lengths, config.normalization, config.max_new_tokens, step.tokens, step.completions)
        return step.rows * (losses * weights.to(losses)).sum()
