"""Prefix tuning (Li & Liang 2021, eq. 3): every layer's attention sees n trained keys and values before the text,
softmax(q [P_k; K]ᵀ) [P_v; V].

Trains  n × layers × 2 × kv_dim  parameters. With `projection`, an MLP computes them in training and is dropped after
it:  n × d + (d + 1) × h + (h + 1) × layers × 2 × d  with d = kv_dim, h = `projection_size`.
Choose it if the base must not change and tasks must be switched within a batch. It takes n positions of the context,
its training depends on the initialization (hence `start`), and it rarely reaches LoRA's quality.
"""

from typing import ClassVar, Literal

import torch
from peft import PeftModel, PrefixTuningConfig
from pydantic import Field
from transformers import PreTrainedModel

from tunesmith.config.method import MethodConfig
from tunesmith.errors import UserError
from tunesmith.methods.prompt import start_tokens
from tunesmith.methods.wrapping import by_size, refuse_two_stacks, wrap_with_peft
from tunesmith.models.prompts import keys_and_values


class Prefix(MethodConfig):
    """Trained keys and values before the text in every layer (Li & Liang 2021)."""

    kind: Literal["prefix"] = "prefix"

    tokens: int = Field(default=20, ge=1)
    """Length of the prefix, in positions. 20: suits short texts; Li & Liang use 10 to 200."""

    projection: bool = False
    """Compute the prefix with an MLP in training, as the paper does against the instability of random initialization.
    Off: a prefix that starts as the keys and values of real tokens trains well directly."""

    projection_size: int | None = Field(default=None, ge=1)
    """Hidden size of that MLP. Default: the size of the keys."""

    start: str | None = None
    """A text whose keys and values initialize the prefix. Default: random tokens of the vocabulary."""

    formula: ClassVar[str] = "softmax(q [P_k; K]ᵀ) [P_v; V] in every layer"
    choose: ClassVar[str] = "The base stays unchanged, tasks switch within a batch. Takes context; rarely reaches LoRA."
    usual_weights: ClassVar[tuple[str, ...]] = ("auto",)

    @property
    def is_resumable(self) -> bool:
        return not self.projection  # the MLP that computes the prefix is not saved

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
                    f"method: prefix needs keys and values of one size, and {type(model).__name__}'s differ. Use lora."
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
        per_token = int(config.num_hidden_layers) * 2 * kv_dim
        if not self.projection:
            return self.tokens * per_token
        inner = self.projection_size or kv_dim
        return self.tokens * kv_dim + (kv_dim + 1) * inner + (inner + 1) * per_token
