"""Fitting a run into a stated memory: how many blocks compute their activations twice, and how many tokens go at once.

A block whose activations are not kept stores its input alone and runs its forward again in the backward pass (Chen et
al. 2016). The first blocks are taken: the backward pass reaches them last, when those of the others have been freed,
so that what one computes again comes on top of nothing.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.choices import ObjectiveConfig
from tunesmith.data.pack import Batch
from tunesmith.errors import UserError
from tunesmith.models.anatomy import blocks
from tunesmith.models.attention import packs
from tunesmith.models.prompts import has_prefix, plain_model

LEAST_TOKENS = 128  # a batch is not halved below it
SLACK = 1.05  # on the whole, for what allocators hold and give back late


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes a token that the forward pass keeps for the backward pass.

    Attributes:
        blocks: of each block, in order.
        block_inputs: of a block of which the input alone is kept.
        rest: outside the blocks.
    """

    blocks: list[int]
    block_inputs: int
    rest: int

    def kept(self, recomputed: int) -> int:
        """Bytes a token at the peak, with the first `recomputed` blocks run twice.

        As much again as the largest block stands for what its backward pass holds besides: gradients of its parts.
        """
        passing = max(self.blocks, default=0)
        at_the_end = sum(self.blocks[recomputed:]) + recomputed * self.block_inputs
        at_the_start = recomputed * self.block_inputs + (passing if recomputed else 0)
        return max(at_the_end, at_the_start) + passing + self.rest


@dataclass(frozen=True, slots=True)
class Fit:
    """What was chosen: the first `recomputed` of `blocks` blocks run twice, batches of `tokens_per_batch`."""

    recomputed: int
    blocks: int
    tokens_per_batch: int


def fit(activations: Activations, held: int, limit: int, tokens_per_batch: int, longest: int, least: int = 0) -> Fit:
    """The cheapest way to stay within the limit: as few blocks twice as will do, then half as many tokens at once.

    Args:
        activations: of the model.
        held: bytes that are there before the first batch.
        limit: bytes.
        tokens_per_batch: most tokens that may go together.
        longest: tokens of the longest row, which cannot be taken apart.
        least: blocks that run twice in any case.

    Raises:
        UserError: the longest row does not fit by itself.
    """
    count = len(activations.blocks)
    tokens = tokens_per_batch
    while True:
        widest = max(tokens, longest)
        for recomputed in range(least, count + 1):
            if SLACK * (held + widest * activations.kept(recomputed)) <= limit:
                return Fit(recomputed, count, tokens)
        if tokens <= max(longest, LEAST_TOKENS):
            break
        tokens = max(LEAST_TOKENS, tokens // 2)
    needed = SLACK * (held + max(tokens, longest) * activations.kept(count))
    raise UserError(
        f"train.memory_limit: {limit / 1e9:.2f} GB are too few: {held / 1e9:.2f} GB are held before the first batch, "
        f"and the longest row ({longest:,} tokens) takes {(needed - held) / 1e9:.2f} GB more with every block computed "
        f"twice. Set memory_limit: {math.ceil(needed / 1e8) / 10:.1f}GB, data.max_length lower, or base.weights: nf4."
    )


@dataclass
class _Count:
    """Bytes of storages that autograd keeps, each counted once, by the block that it was first kept in."""

    held: set[int]
    bytes: dict[int | None, int] = field(default_factory=dict)
    block: int | None = None
    alive: list[Tensor] = field(default_factory=list)  # so that no storage's address is used again for another

    def keep(self, tensor: Tensor) -> Tensor:
        self.alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.held:
            self.held.add(storage.data_ptr())
            self.bytes[self.block] = self.bytes.get(self.block, 0) + storage.nbytes()
        return tensor


def activations_of(model: PreTrainedModel, objective: ObjectiveConfig, batch: Batch) -> Activations:
    """Count what a forward pass over the batch keeps; the model is left as it was."""
    count = _Count({parameter.untyped_storage().data_ptr() for parameter in model.parameters()})
    stack = blocks(plain_model(model))
    with _blocks_told(stack, count), torch.autograd.graph.saved_tensors_hooks(count.keep, lambda tensor: tensor):
        objective.loss(model, batch)
    tokens = max(1, batch.input_ids.shape[1])
    per_token = {block: -(-found // tokens) for block, found in count.bytes.items()}
    width = plain_model(model).config.get_text_config().hidden_size * model.dtype.itemsize
    return Activations([per_token.get(index, 0) for index in range(len(stack))], width, per_token.get(None, 0))


@contextmanager
def _blocks_told(stack: Sequence[nn.Module], count: _Count) -> Iterator[None]:
    def enter(index: int) -> None:
        count.block = index

    def leave() -> None:
        count.block = None

    hooks = []
    for index, block in enumerate(stack):
        hooks.append(block.register_forward_pre_hook(lambda *_, index=index: enter(index)))
        hooks.append(block.register_forward_hook(lambda *_: leave()))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def recompute(model: PreTrainedModel, first: int) -> None:
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
