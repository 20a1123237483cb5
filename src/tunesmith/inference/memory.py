"""The memory that writing text takes, and what is left for the cache. The engine and the planner both ask here."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.inference.pages import pages_for
from tunesmith.models.prompts import plain_model
from tunesmith.modules.served_experts import ServedExperts, ServedSortedExperts
from tunesmith.ops.paged_attention import PAGE

CONCURRENT = 64
"""Sequences that are computed at the same time, by default. On a CPU, products of more rows take as long per row."""

PROMPT_TOKENS = 256
"""Tokens of prompts in one step. Answers that are being written wait that long for their next token."""

ADAPTER_SHARE = 0.1
"""The most of the free memory that adapters may take."""

GPU_MARGIN = 0.1
"""The fraction of the free memory that stays free on a GPU: for the matrix library's workspaces, CUDA graphs, and gaps
between allocations."""

HOST_MARGIN = 0.5
"""The same where the host's memory is used: other programs take and return theirs at any time, and the system keeps
files in it."""

NUMBER = 4
"""Bytes of a number in a step: sums and norms are in fp32 whatever the weights are in."""

LOGIT = 12
"""Bytes of a logit: in fp32, once more scaled or capped, and once more while their log-sum-exp is computed."""


@dataclass(frozen=True, slots=True)
class GenerationMemory:
    """Bytes of a device's memory while text is written.

    Attributes:
        weights: of the model; 0 if they are in memory already.
        step: activations and logits of the largest step.
        adapters: kept for adapters beside the model.
        margin: stays free.
        cache: the rest, for keys and values.
        page: of a page of the cache in all layers.
        context: tokens of the longest text; None: there is no limit.
    """

    weights: int
    step: int
    adapters: int
    margin: int
    cache: int
    page: int
    context: int | None

    @property
    def token(self) -> float:
        """Bytes of the cache per token."""
        return self.page / PAGE

    @property
    def pages(self) -> int:
        """How many pages fit."""
        return self.cache // self.page

    @property
    def tokens(self) -> int:
        """How many tokens fit."""
        return self.pages * PAGE

    @property
    def contexts(self) -> int | None:
        """How many of the longest texts fit; None if there is no longest one."""
        return None if self.context is None else self.pages // pages_for(self.context)

    def to_dict(self) -> dict[str, Any]:
        """The fields, and what follows from them."""
        fits = {"bytes_per_token": self.token, "pages": self.pages, "tokens": self.tokens, "contexts": self.contexts}
        return {**asdict(self), **fits}


def generation_memory(
    model: PreTrainedModel,
    page: int,
    available: int,
    *,
    weights: int = 0,
    on_gpu: bool,
    concurrent: int = CONCURRENT,
    prompt_tokens: int = PROMPT_TOKENS,
) -> GenerationMemory:
    """Divide a device's memory.

    Args:
        model: with or without values.
        page: bytes of a page of the cache in all layers.
        available: bytes for everything.
        weights: bytes of the model, unless they are not among the available ones anymore.
        on_gpu: whether it is a GPU's memory.
        concurrent: the most sequences at the same time.
        prompt_tokens: the most tokens of prompts in one step.

    Returns:
        The parts. If the available memory is too small for the others, the cache has 0 bytes.
    """
    step = step_bytes(model, concurrent + prompt_tokens)
    free = max(0, available - weights)
    adapters, margin = int(free * ADAPTER_SHARE), int(free * (GPU_MARGIN if on_gpu else HOST_MARGIN))
    cache = max(0, free - step - adapters - margin)
    return GenerationMemory(weights, step, adapters, margin, cache, page, context_of(model))


def refuse_unknown_cache(cache: str) -> None:
    """Refuse what is no way to store keys and values.

    Raises:
        UserError: it is none.
    """
    if cache not in ("auto", "int8"):
        raise UserError(f"cache: {cache} is not one of auto and int8.")


def free_bytes(device: torch.device) -> int:
    """The free memory of the device, with what PyTorch holds of a GPU's for new tensors."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def context_of(model: PreTrainedModel) -> int | None:
    """The tokens of the longest text that the model was made for; None if its config has no limit."""
    context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return context


def step_bytes(model: PreTrainedModel, rows: int) -> int:
    """An upper limit of a step's activations and logits. A row has four hidden states, what three of the widest layers
    read and write (a block's gate, up and down), and logits: scored answers need them after every token.

    Args:
        model: with or without values.
        rows: tokens of the step.

    Returns:
        Bytes.
    """
    plain = plain_model(model)
    text = plain.config.get_text_config()
    numbers = 4 * text.hidden_size + 3 * max(_widths(plain))
    return int(rows * (NUMBER * numbers + LOGIT * text.vocab_size))


def _widths(model: PreTrainedModel) -> Iterator[int]:
    """The numbers per token that each layer reads and writes, without the last one."""
    head = model.get_output_embeddings()
    experts = getattr(model.config.get_text_config(), "num_experts_per_tok", None) or 1
    for module in model.modules():
        inputs, outputs = (getattr(module, name, None) for name in ("in_features", "out_features"))
        if module is not head and inputs is not None and outputs is not None:  # some of PEFT's layers lack one or both
            yield int(inputs + outputs)
        if isinstance(module, ServedExperts):  # one expert after another, and what each token's experts have computed
            yield from (sum(module.first.shape), experts * module.last.shape[0])
        if isinstance(module, ServedSortedExperts):  # all of them at once
            yield experts * sum(module.linears.shape)
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 3:  # (experts, in, out)
                yield experts * (parameter.shape[1] + parameter.shape[2])
