"""Online direct preference optimization: the policy learns from pairs of its own samples, ranked by rewards.

With a reward model or a judge as reward, it is reinforcement learning from AI feedback.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.tokens import TokenTable
from tunesmith.models.forward import loss_hidden_states
from tunesmith.models.token_scores import token_scores
from tunesmith.objectives.completion_rows import completion_lengths
from tunesmith.objectives.pair_loss import PairLoss, pair_figures
from tunesmith.objectives.policy import PolicyObjective
from tunesmith.objectives.policy_config import PolicyConfig
from tunesmith.objectives.sampler_checks import Columns
from tunesmith.objectives.scored import Scored
from tunesmith.ops.preference_loss import Pairs


class OnlineDPO(PairLoss, PolicyConfig):
    """The loss of `dpo` on the best and the worst of the completions that the policy has just sampled, by their reward
    (Guo et al. 2024, algorithm 1, with two completions). Prompts whose completions are all as good train nothing."""

    kind: Literal["online_dpo"] = "online_dpo"

    group_size: int = Field(default=4, ge=2)
    """Completions of each prompt, of which the best and the worst become a pair."""

    beta: float = Field(default=0.1, gt=0)
    """β: how strongly the policy is held to where the run started. Default: as `dpo`."""

    @property
    def needs_reference(self) -> bool:
        return self.has_reference or self.max_kl is not None

    @property
    def trained(self) -> int:
        return 2

    @property
    def are_compared(self) -> bool:
        return True

    def build(self, references: Sequence[Any] = ()) -> "OnlineDPOLoss":
        return OnlineDPOLoss(self)


class OnlineDPOLoss(PolicyObjective):
    """The loss of a pair, from log-probabilities at the temperature of the sampling."""

    config: OnlineDPO

    def finish(self, table: TokenTable, scored: Scored, columns: Columns) -> dict[str, Any]:
        del columns["old"]  # nothing is compared with the policy that sampled
        ties = int(scored.is_dead.sum())
        return {"pairs": len(scored.rows) - ties, "ties": ties}

    def chosen(self, scored: Scored) -> list[list[int]]:
        """The best and the worst one, or none of a tie."""
        order = scored.rewards.argsort(1, kind="stable")
        return [[] if tie else [int(each[-1]), int(each[0])] for each, tie in zip(order, scored.is_dead, strict=True)]

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        hidden, labels = loss_hidden_states(model, batch)
        own = token_scores(model, hidden, labels, self.config.temperature).log_probs
        lengths = completion_lengths(batch)
        reference = batch.columns.get("reference", own.detach())
        weight = batch.columns.get("weight", torch.ones_like(own))
        tokens = torch.tensor(lengths, device=own.device)
        better, worse = _sums(own, lengths)
        better_reference, worse_reference = _sums(reference, lengths)
        pairs = Pairs(better, worse, better_reference, worse_reference, tokens[0::2], tokens[1::2])
        figures = pair_figures(self.config, pairs)
        self.note(len(better), **{name: values.mean() for name, values in figures.items() if name != "loss"})
        counts = torch.stack([part[0] for part in torch.split(weight, lengths)])[0::2]
        return (figures["loss"] * counts.to(figures["loss"])).sum()


def _sums(values: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of each completion's tokens: (pairs,) of the better ones, and of the worse ones."""
    sums = torch.stack([part.sum() for part in torch.split(values, list(lengths))])
    return sums[0::2], sums[1::2]
