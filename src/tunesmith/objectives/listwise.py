"""Listwise preferences: a policy learns the order of several completions at once (Plackett–Luce)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tunesmith.data.batch import BatchCompletions
from tunesmith.objectives.preference import Preference, PreferenceObjective, ordered, row_pairs, scores_of_rows
from tunesmith.ops.preference_loss import plackett_luce_loss


class Listwise(Preference):
    """loss = −Σₖ log (exp rₖ / Σ_{j ≥ k} exp rⱼ), r = β (log π(y|x) − log ρ(y|x)), over the completions of a prompt
    from the best one on (Plackett 1975; Luce 1959; Rafailov et al. 2023, eq. 20). With two completions it is DPO."""

    kind: Literal["listwise"] = "listwise"

    formats: ClassVar[tuple[str, ...]] = ("ranking", "preference")

    def build(self, references: Sequence[Any] = ()) -> "ListwiseLoss":
        return ListwiseLoss(self.beta)


class ListwiseLoss(PreferenceObjective):
    """Evaluation reports the share of pairs that the policy, compared with the reference, orders as the row does."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def row_figures(self, log_probs: Tensor, tokens: Tensor, batch: BatchCompletions) -> dict[str, Tensor]:
        rewards = self.beta * (log_probs - batch.reference)
        losses = [
            plackett_luce_loss(rewards[start : start + len(scores)], scores) for start, scores in scores_of_rows(batch)
        ]
        pairs = row_pairs(batch, "all", rewards.device)
        differences = (rewards[pairs.better] - rewards[pairs.worse]).detach()
        rows = len(batch.per_row)
        return {
            "loss": torch.stack(losses),
            "accuracy": pairs.mean(ordered(differences), rows),
            "margin": pairs.mean(differences, rows),
        }
