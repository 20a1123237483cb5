"""Full fine-tuning: every weight moves.

Trains all P parameters: 16 bytes each for master, gradient and AdamW's moments, besides the working copy.
Choose it when examples are many and the new behaviour is far from the base's, or for pretraining. It forgets most.
"""

from typing import Literal

from transformers import PreTrainedModel

from tunesmith.recipe import MethodConfig


class Full(MethodConfig):
    """Every weight moves: much data, behaviour far from the base's, or pretraining."""

    kind: Literal["full"] = "full"

    def apply(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model

    def learning_rate(self) -> float:
        """The habit for billions of parameters; models of laptop size want more (see docs/methods.md)."""
        return 2e-5
