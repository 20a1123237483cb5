"""Computing blocks twice, so that what they make need not be kept (Chen et al. 2016); and what to do when memory runs
out in spite of a plan.

The first blocks are taken: the backward pass reaches them last, when those of the others have been freed, so that what
one computes again comes on top of nothing.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.models.architecture import blocks
from tunesmith.models.attention import packs
from tunesmith.models.prompts import has_prefix, plain_model


def enable_activation_checkpointing(model: PreTrainedModel, first: int) -> None:
    """Let the first blocks keep their input alone, and compute the rest again in the backward pass."""
    plain = plain_model(model)
    if not plain.supports_gradient_checkpointing:
        raise UserError(
            f"{type(plain).__name__} cannot compute its blocks' activations twice. Leave out "
            "train.gradient_checkpointing and train.memory_limit, or set train.tokens_per_batch lower."
        )
    if has_prefix(model) and not packs(plain):
        raise UserError(
            f"train.gradient_checkpointing: {type(plain).__name__} forgets a prefix when it computes a block again. "
            "Leave it and train.memory_limit out, or use another method."
        )
    renamed = getattr(plain, "activation_checkpointing_enable", None)  # from transformers 5.2x on
    (renamed or plain.gradient_checkpointing_enable)({"use_reentrant": False})
    for index, block in enumerate(blocks(plain)):
        for module in block.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = index < first  # type: ignore[assignment]


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that no memory was left: a GPU's, or a CPU's where the system refuses it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def split_in_two(rows: Sequence[int], lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """The rows as two batches of about as many tokens each, in order."""
    whole = sum(lengths)
    before = 0
    for place, length in enumerate(lengths[:-1], 1):
        before += length
        if 2 * before >= whole or place == len(rows) - 1:
            return list(rows[:place]), list(rows[place:])
    return list(rows), []
