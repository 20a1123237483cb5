"""Document attention as one of transformers' attention implementations, through its own registration."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunesmith.errors import UserError
from tunesmith.models.fake_tensors import is_fake
from tunesmith.ops.document_attention import Prefix, document_attention

NAME = "tunesmith_documents"
TRIED = (5, 9)
"""Lengths of the documents that a family is tried on."""
TOLERANCE = 0.05
"""Of the hidden states' norm: many layers in bf16 differ by a hundredth, documents that mix by a third and more."""


def use_document_attention(model: PreTrainedModel) -> bool:
    """Make the model's attention keep packed documents apart, by the `document_lengths` given to its forward.

    Whether a family can is not looked up but tried: two short documents, packed, must have the hidden states that each
    has alone through the family's own attention.

    Returns:
        Whether it can. Where not, its own attention stays, and `models.prompts.model_inputs` pads.
    """
    own = model.config._attn_implementation
    if own == NAME:
        return True
    stateful = getattr(model, "_is_stateful", False)
    if not model._supports_attention_backend or stateful or model.config.is_encoder_decoder:
        return False
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
    training = model.training
    model.eval()
    found = _keeps_documents_apart(model)
    model.train(training)
    if not found:
        model.set_attn_implementation(own)
    return found


def packs(model: PreTrainedModel) -> bool:
    """Whether documents are packed for it; else they are padded."""
    return bool(model.config._attn_implementation == NAME)


def first_position(model: PreTrainedModel) -> int:
    """The first token's position: RoBERTa and its kin count on from the padding's."""
    embeddings = (layer for name, layer in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((getattr(layer, "padding_idx", None) for layer in embeddings), None)
    return 0 if padding is None else padding + 1


@torch.no_grad()
def _keeps_documents_apart(model: PreTrainedModel) -> bool:
    body = model.base_model
    size = model.config.get_text_config().vocab_size
    ids = (torch.arange(TRIED[0] + TRIED[1], device=model.device) * 7 + 3) % size
    documents = ids.split(TRIED)
    positions = torch.cat([torch.arange(length, device=model.device) for length in TRIED]) + first_position(model)
    try:
        if not is_fake(model):
            alone = torch.cat([body(input_ids=each[None]).last_hidden_state[0] for each in documents]).float()
        model.set_attn_implementation(NAME)
        packed = body(input_ids=ids[None], position_ids=positions[None], document_lengths=list(TRIED))
    except (UserError, TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False  # it does not pass on what it is given, or computes something else
    if is_fake(model):  # that it passes on where documents end is all that shapes can tell
        return True
    difference = packed.last_hidden_state[0].float() - alone
    return bool(torch.linalg.vector_norm(difference) < TOLERANCE * torch.linalg.vector_norm(alone))


def _layer(module: torch.nn.Module) -> int:
    number = getattr(module, "layer_idx", None)
    if number is None:
        raise UserError(
            f"method: prefix has keys and values for each layer, and {type(module).__name__} does not know which "
            "it is. Use lora."
        )
    return int(number)


def use_cached_attention(model: PreTrainedModel) -> None:
    """Back to the family's ordinary attention, for generation with a cache."""
    if packs(model):
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")


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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    document_lengths: list[int] | None = None,
    document_prefix: list[Prefix] | None = None,
    seen_keys_and_values: list[Prefix] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """(batch, heads, tokens, dim) in, (batch, tokens, heads, dim) out, as transformers' attention functions go.

    Beside transformers' own arguments come those that were given to the model: `document_lengths`; `document_prefix`,
    the prefix of each layer; `seen_keys_and_values`, a list to which each layer adds its own.
    """
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    if attention_mask is not None or others.get("position_bias") is not None:
        raise UserError(f"{type(module).__name__} has a mask of its own, which document attention does not know.")
    if document_lengths is None:
        raise UserError(f"{type(module).__name__} did not pass on where documents end, so packed rows would mix.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    prefix = None if document_prefix is None else document_prefix[_layer(module)]
    if seen_keys_and_values is not None:
        seen_keys_and_values.append((key, value))
    out = document_attention(
        query, key, value, document_lengths, scale, sliding_window, dropout, causal, prefix, softcap, s_aux
    )
    return out.transpose(1, 2), None
