"""Activation checkpointing (Chen et al. 2016), and splitting batches when memory runs out in spite of a plan.

The first blocks are checkpointed: the backward pass reaches them last, when the activations of the other blocks have
been freed, so that a recomputed block's activations add nothing to the peak.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.models.architecture import blocks
from tunesmith.models.attention import packs
from tunesmith.models.prompts import has_prefix, plain_model


def enable_activation_checkpointing(model: PreTrainedModel, first: int) -> None:
    """Make the first blocks store only their input, and recompute their activations in the backward pass.

    Raises:
        UserError: the model does not support it, or not together with a prefix.
    """
    plain = plain_model(model)
    if not plain.supports_gradient_checkpointing:
        raise UserError(
            f"{type(plain).__name__} does not support activation checkpointing. Leave out "
            "train.gradient_checkpointing and train.memory_limit, or set train.tokens_per_batch lower."
        )
    if has_prefix(model) and not packs(plain):
        raise UserError(
            f"train.gradient_checkpointing: {type(plain).__name__} loses a prefix when it recomputes a block. "
            "Leave out train.gradient_checkpointing and train.memory_limit, or use another method."
        )
    renamed = getattr(plain, "activation_checkpointing_enable", None)  # its name from transformers 5.2x on
    (renamed or plain.gradient_checkpointing_enable)({"use_reentrant": False})
    for index, block in enumerate(blocks(plain)):
        for module in block.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = index < first  # type: ignore[assignment]


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out: on a GPU, or on a CPU where the system refuses an allocation."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def split_in_two(rows: Sequence[int], lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """The rows as two batches with about the same number of tokens each, in order."""
    total = sum(lengths)
    before = 0
    for index, length in enumerate(lengths[:-1], 1):
        before += length
        if 2 * before >= total or index == len(rows) - 1:
            return list(rows[:index]), list(rows[index:])
    return list(rows), []
