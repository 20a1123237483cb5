"""Full fine-tuning: every weight moves.

Trains all P parameters: 16 bytes each for master, gradient and AdamW's moments, besides the working copy.
Choose it when examples are many and the new behavior is far from the base's, or for pretraining. It forgets most.
"""

from typing import ClassVar, Literal

from transformers import PreTrainedModel

from tunesmith.config.registry import MethodConfig
from tunesmith.methods.wrapping import by_size
from tunesmith.models.heads import head_parameters


class Full(MethodConfig):
    """Every weight moves: much data, behavior far from the base's, or pretraining."""

    kind: Literal["full"] = "full"

    formula: ClassVar[str] = "W ← W − ΔW for every weight"
    choose: ClassVar[str] = "Much data, or behavior far from the base's. Takes most memory and forgets most."
    share_for_classes: ClassVar[float] = 0.3

    @property
    def trains_base(self) -> bool:
        return True

    def apply(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        return model.requires_grad_(True)

    def learning_rate(self, parameters: int) -> float:
        return by_size(parameters, small=8e-4, large=2e-5)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        return int(sum(parameter.numel() for parameter in model.parameters()) - head_parameters(model))
