"""Full fine-tuning: every weight is trained.

Trains all P parameters. Master weights, gradients and AdamW's moments take 16 bytes for each, besides the working copy.
Choose it for many examples and behavior that is far from the base's, or for pretraining. It forgets the most.
"""

from typing import ClassVar, Literal

from transformers import PreTrainedModel

from tunesmith.config.method import MethodConfig
from tunesmith.heads.new_head import head_parameters
from tunesmith.methods.wrapping import by_size


class Full(MethodConfig):
    """Trains every weight: for much data, behavior that is far from the base's, or pretraining."""

    kind: Literal["full"] = "full"

    formula: ClassVar[str] = "W ← W − ΔW for every weight"
    choose: ClassVar[str] = (
        "Much data, or behavior that is far from the base's. Takes the most memory and forgets the most."
    )
    adds_weights: ClassVar[bool] = False
    usual_weights: ClassVar[tuple[str, ...]] = ("auto",)
    classification_rate_factor: ClassVar[float] = 0.3

    @property
    def trains_base(self) -> bool:
        return True

    def apply(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        return model.requires_grad_(True)

    def learning_rate(self, parameters: int) -> float:
        return by_size(parameters, small=8e-4, large=2e-5)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        return int(sum(parameter.numel() for parameter in model.parameters()) - head_parameters(model))
