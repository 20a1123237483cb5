"""Bottleneck adapters: a small network with a residual connection in each block, which starts as the identity,
h ← h + s · W_up f(W_down h).

`houlsby` puts one after attention and one after the feed-forward (Houlsby et al. 2019), `pfeiffer` one after the
feed-forward (Pfeiffer et al. 2021), each on the sub-layer's output before its residual. `parallel` reads the
feed-forward's input and adds to the feed-forward's output (He et al. 2022, table 6).
Trains  layers × k × (2 × hidden × inner + inner + hidden)  parameters, with inner = hidden / reduction and k = 2 for
houlsby, else 1.
Choose it for encoders, and for non-linear capacity at little cost. It cannot be merged, so each block computes two more
small matrix products.
"""

from typing import ClassVar, Literal

from peft import PeftModel
from pydantic import Field
from transformers import PreTrainedModel

from tunesmith.config.method import MethodConfig
from tunesmith.methods.wrapping import by_size, wrap_with_peft
from tunesmith.models.architecture import block_layers
from tunesmith.modules.bottleneck import BottleneckConfig


class Adapter(MethodConfig):
    """Small networks with a residual connection in each block (Houlsby et al. 2019; Pfeiffer et al. 2021; He et al.
    2022)."""

    kind: Literal["adapter"] = "adapter"

    reduction: int = Field(default=16, ge=1)
    """The bottleneck size is the hidden size divided by this, but at least 1. 16: Pfeiffer et al. (2021)."""

    placement: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """Where the adapters are. `pfeiffer`: half of houlsby's parameters at about its quality (Pfeiffer et al. 2021)."""

    non_linearity: Literal["relu", "gelu", "silu"] = "relu"
    """The activation in the bottleneck. `relu`: Pfeiffer et al. and He et al."""

    scale: float | None = Field(default=None, gt=0)
    """Factor of the adapter's output. Default: 4 for `parallel` (He et al. 2022, table 5), else 1."""

    formula: ClassVar[str] = "h ← h + s · W_up f(W_down h) in each block"
    choose: ClassVar[str] = (
        "Encoders, and non-linear capacity at little cost. Cannot be merged: two more small products in each block."
    )
    usual_weights: ClassVar[tuple[str, ...]] = ("auto",)

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        parts = block_layers(model)
        targets = [block.feed_forward_out.name for block in parts]
        if self.placement == "houlsby":
            targets += [block.attention_out.name for block in parts]
        config = BottleneckConfig(
            target_modules=targets,
            reduction=self.reduction,
            non_linearity=self.non_linearity,
            scale=self.scale or (4.0 if self.placement == "parallel" else 1.0),
            inputs_from={block.feed_forward_out.name: block.feed_forward_in[0].name for block in parts}
            if self.placement == "parallel"
            else {},
        )
        return wrap_with_peft(model, config, seed)

    def learning_rate(self, parameters: int) -> float:
        return by_size(parameters, small=8e-3, large=3e-4)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        total = 0
        for block in block_layers(model):
            targets = [block.feed_forward_out, *([block.attention_out] if self.placement == "houlsby" else [])]
            for target in targets:
                inputs = block.feed_forward_in[0].inputs if self.placement == "parallel" else target.outputs
                inner = max(1, target.outputs // self.reduction)
                total += inputs * inner + inner + inner * target.outputs + target.outputs
        return total
