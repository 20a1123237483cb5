"""Direct preference optimization: a policy learns from pairs of a better and a worse completion, without rewards."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tunesmith.data.batch import BatchCompletions
from tunesmith.objectives.pair_loss import PairLoss, pair_figures
from tunesmith.objectives.preference import PairsOfRow, Preference, PreferenceObjective, row_pairs
from tunesmith.ops.preference_loss import Pairs


class DPO(PairLoss, Preference):
    """loss = −log σ(β ((log π(y⁺|x) − log ρ(y⁺|x)) − (log π(y⁻|x) − log ρ(y⁻|x)))) for the better completion y⁺ and the
    worse one y⁻ of a prompt x, with the policy π and the reference ρ, which is the model as it starts (Rafailov et al.
    2023, eq. 7); or one of its heirs."""

    kind: Literal["dpo"] = "dpo"

    pairs: PairsOfRow = "all"
    """Of more than two ranked completions: all pairs, whose mean is the row's loss, or the best and the worst."""

    def build(self, references: Sequence[Any] = ()) -> "DPOLoss":
        return DPOLoss(self)


class DPOLoss(PreferenceObjective):
    """A row's loss is the mean over its pairs. Evaluation reports the share of pairs in which the policy, compared with
    the reference, prefers the better completion."""

    def __init__(self, config: DPO) -> None:
        self.config = config
        self.needs_reference = config.has_reference

    def row_figures(self, log_probs: Tensor, tokens: Tensor, batch: BatchCompletions) -> dict[str, Tensor]:
        pairs = row_pairs(batch, self.config.pairs, log_probs.device)
        reference = batch.reference if self.needs_reference else torch.zeros_like(log_probs)
        better, worse = pairs.better, pairs.worse
        values = Pairs(
            log_probs[better], log_probs[worse], reference[better], reference[worse], tokens[better], tokens[worse]
        )
        figures = pair_figures(self.config, values)
        return {name: pairs.mean(each, len(batch.per_row)) for name, each in figures.items()}
