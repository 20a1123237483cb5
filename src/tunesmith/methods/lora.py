"""LoRA (Hu et al. 2021): each chosen weight W gets a trained addition of low rank, W + (alpha / rank) · B A.

Trains rank × (in + out) numbers for each linear layer; B starts at zero, so the model starts as the base.
Choose it unless there is a reason not to: near full fine-tuning's quality on data of instruction size at a third of
its memory (section 4.2 there), and many adapters can share one base. A low rank has less room for much new knowledge.
"""

import re
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLoraLinear
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.models.load import no_renaming_warnings
from tunesmith.ops.lora_linear import lora_linear
from tunesmith.recipe import MethodConfig


class LoRA(MethodConfig):
    """W + (alpha / rank) · B A for each chosen linear layer (Hu et al. 2021): the default for instructions."""

    kind: Literal["lora"] = "lora"

    rank: int = Field(default=16, ge=1)
    """Columns of B and rows of A. 16: on data of a few thousand rows more seldom helps."""

    alpha: float = Field(default=32.0, gt=0)
    """The addition is scaled by alpha / rank. Twice the rank: the field's habit, and what learning rates assume."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the addition's inputs that are zeroed in training. 0: early stopping guards small data at no cost."""

    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """`all-linear` (all but the head), or endings of module names: `[q_proj, v_proj]`. All: attention alone is
    measurably worse at the same size (Dettmers et al. 2023, section 4)."""

    rank_stabilised: bool = False
    """Scale by alpha / √rank instead (Kalajdzievski 2023), for ranks of 64 and more."""

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        """Wrap the model by PEFT, with the fused layer registered through PEFT's hook for custom modules.

        Raises:
            UserError: no module's name ends in one of `target_modules`.
        """
        targets = self._targets(model)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            use_rslora=self.rank_stabilised,
            bias="none",
            task_type="CAUSAL_LM",
        )
        config._register_custom_module({nn.Linear: FusedLoraLinear})
        torch.manual_seed(seed)
        with no_renaming_warnings():
            return get_peft_model(model, config, autocast_adapter_dtype=False)

    def learning_rate(self) -> float:
        """Ten times full fine-tuning's ("LoRA without regret", Schulman et al. 2025)."""
        return 2e-4

    def _targets(self, model: PreTrainedModel) -> str | list[str]:
        if isinstance(self.target_modules, str):
            return self.target_modules
        names = [name for name, _ in model.named_modules()]
        for target in self.target_modules:
            if not any(re.search(rf"(^|\.){re.escape(target)}$", name) for name in names):
                linear = sorted({name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
                raise UserError(
                    f"method.target_modules: no module of {type(model).__name__} ends in {target!r}. "
                    f"Its linear layers: {', '.join(linear)}."
                )
        return list(self.target_modules)


class FusedLoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer, whose plain case (one adapter, no dropout, no variant) runs through `lora_linear`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not self._is_plain(x.dtype):
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        name = self.active_adapters[0]
        base = self.get_base_layer()
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return lora_linear(x, base.weight, base.bias, a, b, self.scaling[name])

    def _is_plain(self, dtype: torch.dtype) -> bool:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_A[name].weight.dtype != dtype:
            return False
        dropout = self.lora_dropout[name]
        return isinstance(dropout, nn.Identity) or not self.training or dropout.p == 0
