"""Prefix tuning (Li & Liang 2021, eq. 3): every layer's attention sees n learnt keys and values before the text,
softmax(q [P_k; K]ᵀ) [P_v; V].

Trains  n × layers × 2 × kv_dim  numbers; with `projection`, an MLP that makes them in training and is dropped after it:
n × d + (d + 1) × h + (h + 1) × layers × 2 × d  with d = kv_dim, h = `projection_size`.
Choose it when the base must stay untouched and a task be switched within a batch. It takes n positions of the
context, its learning depends on where it starts (hence `start`), and it seldom reaches LoRA.
"""

from typing import ClassVar, Literal

import torch
from peft import PeftModel, PrefixTuningConfig
from pydantic import Field
from transformers import PreTrainedModel

from tunesmith.config.registry import MethodConfig
from tunesmith.errors import UserError
from tunesmith.methods.prompt import start_tokens
from tunesmith.methods.wrapping import by_size, refuse_two_stacks, wrap_with_peft
from tunesmith.models.prompts import keys_and_values


class Prefix(MethodConfig):
    """Learnt keys and values before the text in every layer (Li & Liang 2021)."""

    kind: Literal["prefix"] = "prefix"

    tokens: int = Field(default=20, ge=1)
    """Length of the prefix, in positions. 20: of use in short data; Li & Liang take 10 to 200."""

    projection: bool = False
    """Make the prefix by an MLP while training, as the paper does against instability from random starts. Off: a
    prefix that starts as real tokens' keys and values trains well directly."""

    projection_size: int | None = Field(default=None, ge=1)
    """Width of that MLP. Default: keys' own."""

    start: str | None = None
    """A text whose keys and values the prefix starts as. Default: tokens drawn from the vocabulary."""

    formula: ClassVar[str] = "softmax(q [P_k; K]ᵀ) [P_v; V] in every layer"
    choose: ClassVar[str] = "The base stays untouched, tasks switch within a batch. Takes context; seldom reaches LoRA."

    @property
    def is_resumable(self) -> bool:
        return not self.projection  # the network that made the prefix is not kept

    @property
    def virtual_tokens(self) -> int:
        return self.tokens

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        refuse_two_stacks(model, self.kind)
        torch.manual_seed(seed)
        start = None if self.projection else keys_and_values(model, start_tokens(model, self.tokens, self.start))
        config = PrefixTuningConfig(
            num_virtual_tokens=self.tokens,
            prefix_projection=self.projection,
            encoder_hidden_size=self.projection_size,
        )
        peft_model = wrap_with_peft(model, config, seed)
        if start is not None:
            # (1, kv_heads, n, dim) a layer, keys then values → (n, layers × 2 × kv_heads × dim)
            rows = [part[0].transpose(0, 1).flatten(1) for layer in start for part in layer]
            embedding = peft_model.prompt_encoder[peft_model.active_adapter].embedding.weight
            if torch.cat(rows, 1).shape != embedding.shape:
                raise UserError(
                    f"method: prefix makes keys and values of one size, and {type(model).__name__}'s differ. Use lora."
                )
            embedding.data.copy_(torch.cat(rows, 1))
        return peft_model

    def learning_rate(self, parameters: int) -> float:
        if self.projection:
            return by_size(parameters, small=1e-2, large=1e-3)
        return by_size(parameters, small=3e-1, large=1e-3)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        config = model.config.get_text_config()
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        kv_dim = heads * int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        numbers = int(config.num_hidden_layers) * 2 * kv_dim
        if not self.projection:
            return self.tokens * numbers
        inner = self.projection_size or kv_dim
        return self.tokens * kv_dim + (kv_dim + 1) * inner + (inner + 1) * numbers
