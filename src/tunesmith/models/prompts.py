"""Documents as a model's arguments, packed or padded, each with the learnt prompt or prefix that stands before it, if
there is one.

PEFT's own forward puts a prompt before a whole row, which would reach the first document alone. Here every document
gets what it would get by itself in PEFT: virtual tokens before its own (Lester et al. 2021), or keys and values before
its own in each layer (Li & Liang 2021), its positions counted on from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.pack import WIDTH_STEP, Batch
from tunesmith.errors import UserError
from tunesmith.models.attention import first_position, packs
from tunesmith.ops.document_attention import Prefix

PADDED_STEP = 16
"""Padded rows' lengths are a multiple of it, so that shapes repeat."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model's body is called with.

    Attributes:
        arguments: of its forward.
        places: (width,) int64: where each of the batch's tokens stands in the rows that the model sees, end to end; of
            a padded batch, without the one that fills it up.
        starts: (documents,) int64: where each document begins there, its virtual tokens included.
    """

    arguments: dict[str, Any]
    places: Tensor
    starts: Tensor


def model_inputs(model: PreTrainedModel, batch: Batch) -> Inputs:
    """The batch as arguments for the body of a model, with or without PEFT's wrapper."""
    if not packs(plain_model(model)):
        return _padded(model, batch)
    device = batch.input_ids.device
    places = torch.arange(batch.input_ids.shape[1], device=device)
    lengths = torch.tensor(batch.lengths, device=device)
    starts = lengths.cumsum(0) - lengths
    arguments = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids + first_position(plain_model(model)),
        "document_lengths": batch.lengths,
    }
    if not has_prompt(model):
        return Inputs(arguments, places, starts)
    prompt = model.get_prompt(1)
    if not isinstance(prompt, Tensor):
        prefix = [(layer.keys, layer.values) for layer in prompt.layers]
        arguments["position_ids"] += prefix[0][0].shape[2]
        return Inputs({**arguments, "document_prefix": prefix}, places, starts)
    count = prompt.shape[1]
    document = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    return Inputs(
        _with_virtual_tokens(model, batch, prompt), places + count * (document + 1), starts + count * _range(starts)
    )


def _padded(model: PreTrainedModel, batch: Batch) -> Inputs:
    """A row a document, filled up on the right, for families that cannot be told where packed documents end."""
    device = batch.input_ids.device
    lengths = batch.lengths[: batch.documents]
    ids, mask = padded(plain_model(model), torch.split(batch.input_ids[0], batch.lengths)[: len(lengths)])
    starts = torch.arange(len(lengths), device=device) * ids.shape[1]
    places = padded_places(lengths, ids.shape[1], device)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if not has_prompt(model):
        return Inputs(arguments, places, starts)
    prompt = model.get_prompt(len(lengths))
    count = virtual_tokens(model)
    arguments["attention_mask"] = torch.cat([mask.new_ones(len(lengths), count), mask], 1)
    if not isinstance(prompt, Tensor):
        return Inputs({**arguments, "past_key_values": prompt}, places, starts)
    embeddings = plain_model(model).get_input_embeddings()(arguments.pop("input_ids"))
    arguments["inputs_embeds"] = torch.cat([prompt.to(embeddings.dtype), embeddings], 1)
    shifts = count * (torch.arange(len(lengths), device=device) + 1)
    own = torch.repeat_interleave(shifts, torch.tensor(lengths, device=device))
    return Inputs(arguments, places + own, starts + shifts - count)


def padded(model: PreTrainedModel, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of ids (length,) as one tensor (rows, longest), filled up on the right, and a mask of what is no filling."""
    longest = -(-max(map(len, rows)) // PADDED_STEP) * PADDED_STEP
    ids = rows[0].new_full((len(rows), longest), model.config.get_text_config().pad_token_id or 0)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return ids, mask


def padded_places(lengths: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Where the tokens of rows of these lengths stand (tokens,), in rows of that width laid end to end."""
    return torch.cat([torch.arange(row * width, row * width + length) for row, length in enumerate(lengths)]).to(device)


def has_prompt(model: PreTrainedModel) -> bool:
    """Whether PEFT is to put something before the tokens."""
    return hasattr(model, "get_base_model") and bool(model.active_peft_config.is_prompt_learning)


def has_prefix(model: PreTrainedModel) -> bool:
    """Whether what PEFT puts before the tokens are keys and values in every layer."""
    return has_prompt(model) and model.active_peft_config.peft_type == "PREFIX_TUNING"


def virtual_tokens(model: PreTrainedModel) -> int:
    """How many positions a prompt or prefix takes of the model's context."""
    return int(model.active_peft_config.num_virtual_tokens) if has_prompt(model) else 0


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers model inside PEFT's wrapper, its adapted layers in place; itself if there is no wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def keys_and_values(model: PreTrainedModel, ids: Tensor) -> list[Prefix]:
    """What each layer's attention makes of the given tokens (tokens,): the prefix that they would be.

    Raises:
        UserError: it has layers without keys and values, or keeps none.
    """
    if not packs(model):
        kept = model.base_model(input_ids=ids[None]).get("past_key_values")
        layers = [] if kept is None else kept.layers
        found = [(layer.keys, layer.values) for layer in layers if isinstance(getattr(layer, "keys", None), Tensor)]
        if len(found) != model.config.get_text_config().num_hidden_layers:
            raise UserError(
                f"method: prefix stands before the keys and values of every layer, and {type(model).__name__} has "
                "layers without them or gives none. Use lora."
            )
        return found
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
    """Embeddings with the prompt (1, virtual, hidden) before each document, the width filled up to a round one."""
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
