"""Documents as a model's arguments, packed or padded, each with the trained prompt or prefix before it if there is one.

PEFT's own forward puts a prompt before the entire row, so only the first document would see it. Here every document
gets what it would get alone in PEFT: virtual tokens before its own (Lester et al. 2021), or keys and values before its
own in each layer (Li & Liang 2021). Its positions continue after them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.batch import WIDTH_STEP, Batch
from tunesmith.errors import UserError
from tunesmith.models.attention import branches, first_position, packs
from tunesmith.ops.document_attention import Prefix

PADDED_STEP = 16
"""The lengths of padded rows are a multiple of it, so that shapes repeat."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of the model's body.

    Attributes:
        arguments: of its forward.
        positions: (width,) int64: the position of each of the batch's tokens in the concatenated rows that the model
            sees. For a padded batch, without the document that only fills the batch.
        starts: (documents,) int64: the position there of each document's first token, or first virtual token.
    """

    arguments: dict[str, Any]
    positions: Tensor
    starts: Tensor


def model_inputs(model: PreTrainedModel, batch: Batch) -> Inputs:
    """The batch as arguments for the body of a model, with or without PEFT's wrapper."""
    if batch.parents is not None and (_has_virtual_tokens(model) or not branches(plain_model(model))):
        flat, positions = unbranched(batch)
        inputs = model_inputs(model, flat)
        return Inputs(inputs.arguments, inputs.positions[positions], inputs.starts[: flat.documents])
    if not packs(plain_model(model)):
        return _padded(model, batch)
    device = batch.input_ids.device
    positions = torch.arange(batch.input_ids.shape[1], device=device)
    lengths = torch.tensor(batch.lengths, device=device)
    starts = lengths.cumsum(0) - lengths
    arguments = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids + first_position(plain_model(model)),
        "document_lengths": batch.lengths,
    }
    if batch.parents is not None:
        arguments["document_parents"] = batch.parents
    if not has_prompt(model):
        return Inputs(arguments, positions, starts)
    prompt = model.get_prompt(1)
    if not isinstance(prompt, Tensor):
        prefix = [(layer.keys, layer.values) for layer in prompt.layers]
        arguments["position_ids"] += prefix[0][0].shape[2]
        return Inputs({**arguments, "document_prefix": prefix}, positions, starts)
    count = prompt.shape[1]
    document = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    return Inputs(
        _with_virtual_tokens(model, batch, prompt), positions + count * (document + 1), starts + count * _range(starts)
    )


def unbranched(batch: Batch) -> tuple[Batch, Tensor]:
    """A batch in which no document continues another: each completion with a copy of its beginning, for models that
    cannot share it.

    Args:
        batch: with `parents`.

    Returns:
        The batch, and for each token of the given one its position there (tokens,), in the first copy if several.
    """
    assert batch.parents is not None
    parents = batch.parents[: batch.documents]
    device = batch.input_ids.device
    documents = torch.split(torch.arange(batch.input_ids.shape[1], device=device), batch.lengths)
    is_beginning = set(parents)
    texts = [
        torch.cat([documents[parents[number]], documents[number]]) if parents[number] >= 0 else documents[number]
        for number in range(len(parents))
        if number not in is_beginning
    ]
    at = torch.cat(texts)
    positions = torch.zeros(batch.input_ids.shape[1], dtype=torch.int64, device=device)
    positions.scatter_reduce_(0, at, torch.arange(len(at), device=device), "amin", include_self=False)
    lengths = [len(text) for text in texts]
    ids = batch.input_ids[0, at]
    if missing := -len(at) % WIDTH_STEP:
        lengths.append(missing)
        ids = torch.cat([ids, ids.new_zeros(missing)])
    position_ids = torch.cat([torch.arange(length, device=device) for length in lengths])
    flat = replace(
        batch,
        input_ids=ids[None],
        position_ids=position_ids[None],
        lengths=lengths,
        documents_per_row=[1] * len(texts),
        parents=None,
    )
    return flat, positions


def _padded(model: PreTrainedModel, batch: Batch) -> Inputs:
    """One row for each document, padded on the right, for families whose attention does not support packing."""
    device = batch.input_ids.device
    lengths = batch.lengths[: batch.documents]
    ids, mask = padded(plain_model(model), torch.split(batch.input_ids[0], batch.lengths)[: len(lengths)])
    starts = torch.arange(len(lengths), device=device) * ids.shape[1]
    positions = padded_positions(lengths, ids.shape[1], device)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if not has_prompt(model):
        return Inputs(arguments, positions, starts)
    prompt = model.get_prompt(len(lengths))
    count = virtual_tokens(model)
    arguments["attention_mask"] = torch.cat([mask.new_ones(len(lengths), count), mask], 1)
    if not isinstance(prompt, Tensor):
        return Inputs({**arguments, "past_key_values": prompt}, positions, starts)
    embeddings = plain_model(model).get_input_embeddings()(arguments.pop("input_ids"))
    arguments["inputs_embeds"] = torch.cat([prompt.to(embeddings.dtype), embeddings], 1)
    shifts = count * (torch.arange(len(lengths), device=device) + 1)
    token_shifts = torch.repeat_interleave(shifts, torch.tensor(lengths, device=device))
    return Inputs(arguments, positions + token_shifts, starts + shifts - count)


def padded(model: PreTrainedModel, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of ids (length,) as one tensor (rows, longest), padded on the right, and the attention mask."""
    longest = -(-max(map(len, rows)) // PADDED_STEP) * PADDED_STEP
    ids = rows[0].new_full((len(rows), longest), model.config.get_text_config().pad_token_id or 0)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


def padded_positions(lengths: Sequence[int], width: int, device: torch.device) -> Tensor:
    """The positions (tokens,) of the tokens of rows of these lengths, in concatenated rows padded to that width."""
    return torch.cat([torch.arange(row * width, row * width + length) for row, length in enumerate(lengths)]).to(device)


def has_prompt(model: PreTrainedModel) -> bool:
    """Whether PEFT puts a prompt or prefix before the tokens."""
    return hasattr(model, "get_base_model") and bool(model.active_peft_config.is_prompt_learning)


def without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The base inside PEFT's wrapper, without the adapter's layers, in place. PEFT's own `unload` copies weights, which
    quantized layers do not let it do."""
    base: PreTrainedModel = model.get_base_model()
    for name, module in list(base.named_modules()):
        if hasattr(module, "get_base_layer"):
            base.set_submodule(name, module.get_base_layer())
    return base


def has_prefix(model: PreTrainedModel) -> bool:
    """Whether PEFT puts keys and values before the tokens in every layer."""
    return has_prompt(model) and model.active_peft_config.peft_type == "PREFIX_TUNING"


def _has_virtual_tokens(model: PreTrainedModel) -> bool:
    """Whether PEFT puts embeddings before the tokens, as one more document could not share."""
    return has_prompt(model) and not has_prefix(model)


def virtual_tokens(model: PreTrainedModel) -> int:
    """The number of positions that a prompt or prefix takes in the model's context."""
    return int(model.active_peft_config.num_virtual_tokens) if has_prompt(model) else 0


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers model inside PEFT's wrapper, with its adapter layers; the model itself without a wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def keys_and_values(model: PreTrainedModel, ids: Tensor) -> list[Prefix]:
    """Each layer's keys and values of the tokens (tokens,), which can serve as a prefix.

    Raises:
        UserError: the model has layers without keys and values, or does not return them.
    """
    if not packs(model):
        cache = model.base_model(input_ids=ids[None]).get("past_key_values")
        layers = [] if cache is None else cache.layers
        pairs = [(layer.keys, layer.values) for layer in layers if isinstance(getattr(layer, "keys", None), Tensor)]
        if len(pairs) != model.config.get_text_config().num_hidden_layers:
            raise UserError(
                f"method: prefix needs keys and values in every layer, and {type(model).__name__} has layers without "
                "them or does not return them. Use lora."
            )
        return pairs
    seen: list[Prefix] = []
    model.base_model(
        input_ids=ids[None],
        position_ids=_range(ids)[None] + first_position(model),
        document_lengths=[len(ids)],
        seen_keys_and_values=seen,
        use_cache=False,
    )
    return seen


def _with_virtual_tokens(model: PreTrainedModel, batch: Batch, prompt: Tensor) -> dict[str, Any]:
    """Embeddings with the prompt (1, virtual, hidden) before each document, padded to a multiple of `WIDTH_STEP`."""
    embeddings = plain_model(model).get_input_embeddings()(batch.input_ids)  # (1, width, hidden)
    prompt = prompt.to(embeddings.dtype)
    parts = [part for own in embeddings.split(batch.lengths, 1) for part in (prompt, own)]
    lengths = [prompt.shape[1] + length for length in batch.lengths]
    if missing := -sum(lengths) % WIDTH_STEP:
        parts.append(embeddings.new_zeros(1, missing, embeddings.shape[2]))
        lengths.append(missing)
    device = embeddings.device
    first = first_position(plain_model(model))
    return {
        "inputs_embeds": torch.cat(parts, 1),
        "position_ids": torch.cat([torch.arange(length, device=device) for length in lengths])[None] + first,
        "document_lengths": lengths,
    }


def _range(like: Tensor) -> Tensor:
    return torch.arange(len(like), device=like.device)
