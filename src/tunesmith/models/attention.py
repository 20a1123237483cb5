"""Document attention, registered as one of transformers' attention implementations."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunesmith.errors import UserError
from tunesmith.ops.branched_attention import branched_attention
from tunesmith.ops.document_attention import Prefix, document_attention
from tunesmith.ops.paged_attention import LayerCache, Layout, paged_attention

NAME = "tunesmith_documents"
PROBE_LENGTHS = (5, 9)
"""Lengths, in tokens, of the two documents that a family is tested on."""
_UNSUPPORTED = (UserError, TypeError, ValueError, RuntimeError, AttributeError, IndexError)

TOLERANCE = 0.05
"""As a fraction of the hidden states' norm. Many layers in bf16 differ by a hundredth; documents that attend to each
other differ by a third or more."""


def use_document_attention(model: PreTrainedModel, trial: Callable[[PreTrainedModel], bool] | None = None) -> bool:
    """Keep packed documents separate in the model's attention, by the `document_lengths` passed to its forward.

    There is no list of supported families. Each model is tried: two short packed documents must have the same hidden
    states as each document alone with the family's own attention.

    Args:
        model: any.
        trial: sets the attention and says whether it separates documents. Default: `separates_documents`.

    Returns:
        Whether the model supports it. If not, it keeps its own attention, and `models.prompts.model_inputs` pads.
    """
    own = model.config._attn_implementation
    if own == NAME:
        return True
    if not takes_attention(model):
        return False
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
    training = model.training
    model.eval()
    supported = (trial or separates_documents)(model)
    model.train(training)
    if not supported:
        model.set_attn_implementation(own)
    return supported


def takes_attention(model: PreTrainedModel) -> bool:
    """Whether the family may work with another attention than its own, and keeps no state besides keys and values."""
    stateful = getattr(model, "_is_stateful", False)
    return bool(model._supports_attention_backend) and not stateful and not model.config.is_encoder_decoder


def packs(model: PreTrainedModel) -> bool:
    """Whether documents are packed for this model. Otherwise they are padded."""
    return bool(model.config._attn_implementation == NAME)


_FIRST_POSITIONS: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()
"""Of the models that were asked for: each forward pass needs it, and with adapters a model has thousands of modules."""


def first_position(model: PreTrainedModel) -> int:
    """The position of the first token. RoBERTa and similar models count from the padding index."""
    known = _FIRST_POSITIONS.get(model)
    if known is None:
        embeddings = (layer for name, layer in model.named_modules() if name.endswith("position_embeddings"))
        padding = next((getattr(layer, "padding_idx", None) for layer in embeddings), None)
        known = _FIRST_POSITIONS[model] = 0 if padding is None else padding + 1
    return known


@torch.no_grad()
def separates_documents(model: PreTrainedModel) -> bool:
    """Set document attention, and compare the hidden states of two packed documents with each document's alone."""
    documents = torch.split(probe_ids(model), list(PROBE_LENGTHS))
    try:
        states = [model.base_model(input_ids=document[None]).last_hidden_state[0] for document in documents]
    except _UNSUPPORTED:
        return False
    packed = packed_states(model)
    if packed is None:
        return False
    alone = torch.cat(states).float()
    difference = packed.float() - alone
    return bool(torch.linalg.vector_norm(difference) < TOLERANCE * torch.linalg.vector_norm(alone))


_BRANCHES: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def branches(model: PreTrainedModel, trial: Callable[[PreTrainedModel], bool] | None = None) -> bool:
    """Whether packed documents can continue others in this model, so that completions share their prompt's computation.

    Encoders cannot, whose tokens see later ones, and neither can families that do not pack. Each model is tried once.

    Args:
        model: after `use_document_attention`.
        trial: says whether it works. Default: two continuations of a document must have the hidden states that they
            have after it in one text.
    """
    if not packs(model):
        return False
    if model not in _BRANCHES:
        training = model.training
        model.eval()
        _BRANCHES[model] = (trial or _continues_documents)(model)
        model.train(training)
    return _BRANCHES[model]


@torch.no_grad()
def _continues_documents(model: PreTrainedModel) -> bool:
    together = branched_states(model)
    beginning, *ends = _probe_branches(model)
    alone = [packed_states(model, [torch.cat([beginning, end])]) for end in ends]
    if together is None or alone[0] is None or alone[1] is None:
        return False
    expected = torch.cat([alone[0], alone[1][len(beginning) :]]).float()
    difference = torch.linalg.vector_norm(together.float() - expected)
    return bool(difference < TOLERANCE * torch.linalg.vector_norm(expected))


@torch.no_grad()
def branched_states(model: PreTrainedModel) -> Tensor | None:
    """The hidden states of a document and two that continue it (tokens, hidden); None as in `packed_states`."""
    return packed_states(model, _probe_branches(model), [-1, 0, 0])


def _probe_branches(model: PreTrainedModel) -> Sequence[Tensor]:
    beginning, first, second = torch.split(probe_ids(model), [6, 3, 5])
    return beginning, first, second


@torch.no_grad()
def packed_states(
    model: PreTrainedModel, documents: Sequence[Tensor] | None = None, parents: list[int] | None = None
) -> Tensor | None:
    """Set document attention, and compute the hidden states of packed documents (tokens, hidden); None if the model
    does not pass its arguments on to attention, or computes something else.

    Args:
        model: any.
        documents: token ids of each. Default: two short ones.
        parents: for each document, the index of the one that it continues; -1: none.
    """
    if documents is None:
        documents = torch.split(probe_ids(model), list(PROBE_LENGTHS))
    lengths = [len(document) for document in documents]
    starts = [0 if not parents or parent < 0 else lengths[parent] for parent in parents or [-1] * len(lengths)]
    positions = torch.cat(
        [start + torch.arange(length, device=model.device) for start, length in zip(starts, lengths, strict=True)]
    )
    try:
        model.set_attn_implementation(NAME)
        out = model.base_model(
            input_ids=torch.cat(list(documents))[None],
            position_ids=positions[None] + first_position(model),
            document_lengths=lengths,
            **({} if parents is None else {"document_parents": parents}),
        )
    except _UNSUPPORTED:
        return None
    states: Tensor = out.last_hidden_state[0]
    return states


def probe_ids(model: PreTrainedModel) -> Tensor:
    """The token ids of two short documents."""
    size = model.config.get_text_config().vocab_size
    ids: Tensor = (torch.arange(sum(PROBE_LENGTHS), device=model.device) * 7 + 3) % size
    return ids


def _layer_index(module: torch.nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if index is None:
        raise UserError(
            f"method: prefix has keys and values for each layer, and {type(module).__name__} has no layer_idx. "
            "Use lora."
        )
    return int(index)


class PagedStep:
    """One batch of a generation: parts of sequences whose earlier keys and values are in a paged cache.

    Args:
        layers: the cache of each layer by its index; a layer that is not there is added.
        pages: how many pages a new layer's cache gets.
        layout: which token of the batch belongs to which sequence.
        in_int8: whether a new layer's cache is in int8.
    """

    def __init__(self, layers: dict[int, LayerCache], pages: int, layout: Layout, in_int8: bool = False) -> None:
        self._layers, self._pages, self.layout, self._in_int8 = layers, pages, layout, in_int8

    def cache(self, layer: int) -> LayerCache | None:
        """The cache of a layer, if it has one already."""
        return self._layers.get(layer)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, **options: Any) -> Tensor:
        """`ops.paged_attention.paged_attention` with the cache of that layer."""
        if layer not in self._layers:
            self._layers[layer] = LayerCache.empty(self._pages, k, v, self._in_int8)
        return paged_attention(q, k, v, self._layers[layer], self.layout, scale, **options)


def use_cached_attention(model: PreTrainedModel) -> None:
    """Restore the family's standard attention, for generation with a key-value cache."""
    if packs(model):
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask tensor: `document_lengths` replaces it."""


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
    document_parents: list[int] | None = None,
    document_prefix: list[Prefix] | None = None,
    seen_keys_and_values: list[Prefix] | None = None,
    paged: PagedStep | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """(batch, heads, tokens, dim) in, (batch, tokens, heads, dim) out, like transformers' attention functions.

    In addition to transformers' arguments, it receives those passed to the model: `document_lengths`;
    `document_parents`, the document that each one continues, if some do; `document_prefix`, the prefix of each layer;
    `seen_keys_and_values`, a list to which each layer appends its own; or `paged`, a step of generation.
    """
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    if attention_mask is not None or others.get("position_bias") is not None:
        raise UserError(f"{type(module).__name__} has its own attention mask, which document attention cannot apply.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if paged is not None:
        options = {"window": sliding_window, "softcap": softcap, "sinks": s_aux}
        return paged.attend(_layer_index(module), query, key, value, scale, **options).transpose(1, 2), None
    if document_lengths is None:
        raise UserError(
            f"{type(module).__name__} did not pass on document_lengths, so packed rows would attend to each other."
        )
    prefix = None if document_prefix is None else document_prefix[_layer_index(module)]
    if seen_keys_and_values is not None:
        seen_keys_and_values.append((key, value))
    if document_parents is not None:
        if not causal:
            raise UserError(f"{type(module).__name__} reads later tokens too, so documents cannot continue others.")
        out = branched_attention(
            query, key, value, document_lengths, document_parents, scale, sliding_window, dropout, prefix, softcap,
            s_aux,
        )  # fmt: skip
        return out.transpose(1, 2), None
    out = document_attention(
        query, key, value, document_lengths, scale, sliding_window, dropout, causal, prefix, softcap, s_aux
    )
    return out.transpose(1, 2), None
