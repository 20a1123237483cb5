"""Document attention as one of transformers' attention implementations, through its own registration."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunesmith.errors import UserError
from tunesmith.ops.document_attention import Prefix, document_attention

NAME = "tunesmith_documents"


def use_document_attention(model: PreTrainedModel) -> None:
    """Make the model's attention keep packed documents apart, by the `document_lengths` given to its forward.

    Raises:
        UserError: the family's attention cannot be exchanged, so packing would mix documents.
    """
    if not model._supports_attention_backend or getattr(model, "_is_stateful", False):
        raise UserError(
            f"{type(model).__name__}'s attention cannot be told where packed documents end, and its rows would mix. "
            "This family cannot be trained yet."
        )
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
    model.set_attn_implementation(NAME)


def use_cached_attention(model: PreTrainedModel) -> None:
    """Back to PyTorch's ordinary attention, for generation with a cache."""
    model.set_attn_implementation("sdpa")


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask tensor: the boundaries say it all."""


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    document_lengths: list[int] | None = None,
    document_prefix: list[Prefix] | None = None,
    seen_keys_and_values: list[Prefix] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """(batch, heads, tokens, dim) in, (batch, tokens, heads, dim) out, as transformers' attention functions go.

    Beside transformers' own arguments come those that were given to the model: `document_lengths`; `document_prefix`,
    the prefix of each layer; `seen_keys_and_values`, a list to which each layer adds its own.
    """
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    causal = getattr(module, "is_causal", True)
    if not causal and sliding_window is not None:
        unknown.append("a window that looks both ways")
    if unknown or attention_mask is not None:
        what = ", ".join(unknown) or "a mask of its own"
        raise UserError(f"{type(module).__name__} uses {what}, which document attention does not have yet.")
    if document_lengths is None:
        raise UserError(
            f"{type(module).__name__} did not pass on where documents end, so packed rows would mix. "
            "This family cannot be trained yet."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    prefix = None if document_prefix is None else document_prefix[int(module.layer_idx)]  # type: ignore[arg-type]
    if seen_keys_and_values is not None:
        seen_keys_and_values.append((key, value))
    out = document_attention(query, key, value, document_lengths, scale, sliding_window, dropout, causal, prefix)
    return out.transpose(1, 2), None
