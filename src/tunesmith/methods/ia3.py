"""IA3 (Liu et al. 2022, eq. 1): keys, values and the feed-forward's inner activation are each multiplied by a trained
vector,  k ← l_k ⊙ k,  v ← l_v ⊙ v,  W₂ (l_ff ⊙ f(W₁ x)).

Trains  layers × (2 × kv_dim + mlp_dim)  parameters, all starting at one. A fused layer that also computes queries has a
factor for each of its outputs.
Choose it for few examples and many adapters. It has little capacity for new knowledge or style.
"""

from typing import ClassVar, Literal

from peft import IA3Config, PeftModel
from transformers import PreTrainedModel

from tunesmith.config.method import MethodConfig
from tunesmith.methods.wrapping import by_size, wrap_with_peft
from tunesmith.models.architecture import block_layers


class IA3(MethodConfig):
    """Trained factors of keys, values and inner activations (Liu et al. 2022): tiny, for few examples."""

    kind: Literal["ia3"] = "ia3"

    formula: ClassVar[str] = "k ← l_k ⊙ k, v ← l_v ⊙ v, W₂ (l_ff ⊙ f(W₁ x))"
    choose: ClassVar[str] = "Few examples and many adapters. Little capacity for new knowledge or style."
    is_mergeable: ClassVar[bool] = True
    usual_weights: ClassVar[tuple[str, ...]] = ("auto",)

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        parts = block_layers(model)
        feed_forward = [block.feed_forward_out.name for block in parts]
        keys_and_values = [layer.name for block in parts for layer in block.key_value]
        config = IA3Config(target_modules=keys_and_values + feed_forward, feedforward_modules=feed_forward)
        return wrap_with_peft(model, config, seed)

    def learning_rate(self, parameters: int) -> float:
        """Vectors that start at one need larger rates than matrices that start small: Liu et al. use 3e-3 for 11 B."""
        return by_size(parameters, small=1e-1, large=5e-3)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        return sum(
            sum(layer.outputs for layer in block.key_value) + block.feed_forward_out.inputs
            for block in block_layers(model)
        )
