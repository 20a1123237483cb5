"""The memory of writing text with a base, before its weights are read: what stays for keys and values."""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.config.base import Base
from tunesmith.errors import UserError
from tunesmith.inference.memory import (
    CONCURRENT,
    PROMPT_TOKENS,
    GenerationMemory,
    generation_memory,
    refuse_unknown_cache,
)
from tunesmith.models.attention import PagedStep, packs
from tunesmith.models.load import stored_dtype
from tunesmith.models.prompts import plain_model
from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.modules.served_experts import expert_matrices
from tunesmith.ops.packed_linear import Stored, packed_bytes
from tunesmith.ops.paged_attention import LayerCache, Layout, Part
from tunesmith.ops.quantized import BLOCK
from tunesmith.planner.device import Device
from tunesmith.planner.fake_model import fake_model, pack_fake
from tunesmith.planner.fake_tensors import fake_tensors
from tunesmith.planner.plan import Plan


def plan_generation(
    base: Base,
    dtype: torch.dtype,
    device: Device,
    available: int | None = None,
    concurrent: int = CONCURRENT,
    prompt_tokens: int = PROMPT_TOKENS,
    cache: str = "auto",
) -> GenerationMemory:
    """Predict how a device's memory is divided while a base writes text, and how many tokens its cache holds.

    Args:
        base: with the precision of its weights.
        dtype: of everything that is not quantized: activations, keys and values.
        device: to write on.
        available: bytes for everything; default: the device's memory without what programs and the driver hold.
        concurrent: the most sequences at the same time.
        prompt_tokens: the most tokens of prompts in one step.
        cache: how keys and values are stored: `auto` (as the model computes them), or `int8`.

    Returns:
        The parts, from which pages, tokens and full contexts follow.

    Raises:
        UserError: the family's attention cannot be paged, so each text has a cache of its own; or there is no such
            cache.
    """
    refuse_unknown_cache(cache)
    room = device.memory_bytes - device.program_bytes if available is None else available
    with fake_tensors():
        model = fake_model(base, dtype)
        page = page_bytes(model, in_int8=cache == "int8")
        if page is None:
            raise UserError(f"{base.path}: the attention of {type(model).__name__} cannot be paged.")
        weights = weight_bytes(model, stored_dtype(base), packed=device.kind == "cpu")
        return generation_memory(
            model, page, room, weights=weights, on_gpu=device.kind == "cuda", concurrent=concurrent,
            prompt_tokens=prompt_tokens,
        )  # fmt: skip


def generation_of(plan: Plan, cache: str = "auto") -> GenerationMemory | None:
    """`plan_generation` for the base of a planned run, on the run's device.

    Args:
        plan: of the run.
        cache: how keys and values are stored: `auto` (as the model computes them), or `int8`.

    Returns:
        None if the run's model writes no text, or its attention cannot be paged.

    Raises:
        UserError: there is no such cache.
    """
    refuse_unknown_cache(cache)
    recipe = plan.batch_plan.recipe
    if not recipe.objective.head.generates_text:
        return None
    dtype = torch.float32 if plan.device.kind == "cpu" else plan.dtype  # as `models.precision.writing_dtype`
    room = plan.available - (0 if plan.device.is_here else plan.device.program_bytes)
    try:
        return plan_generation(recipe.base, dtype, plan.device, room, cache=cache)
    except UserError:
        return None


class _CacheShapes(PagedStep):
    """A step that makes each layer's cache and computes no attention."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, **_: Any) -> Tensor:
        self._layers[layer] = LayerCache.empty(self._pages, k, v, self._in_int8)
        return q.new_empty(*q.shape[:3], v.shape[3])


def page_bytes(model: Any, in_int8: bool = False) -> int | None:
    """The bytes of a page of the cache in all layers, from the keys and values that the model's own code computes for a
    token.

    Args:
        model: with fake tensors; call this in `fake_tensors`.
        in_int8: whether the cache is in int8.

    Returns:
        None if the model's attention cannot be paged.
    """
    if model.config.is_encoder_decoder or not (packs(model) or pack_fake(model)):
        return None
    layers: dict[int, LayerCache] = {}
    token = torch.zeros(1, 1, dtype=torch.long)
    step = _CacheShapes(layers, 1, Layout([Part(1, 0, [0])]), in_int8)
    plain_model(model).base_model(input_ids=token, position_ids=token, use_cache=False, paged=step)
    return sum(cache.bytes_per_page for cache in layers.values())


def weight_bytes(model: Any, stored: torch.dtype, packed: bool) -> int:
    """The bytes of the weights as the engine holds them.

    Args:
        model: with fake tensors.
        stored: the dtype of the base's files. Packed layers keep numbers in bf16 that were stored so.
        packed: whether linear layers and experts are packed (`ops.packed_linear`), as on a CPU.
    """
    layers = {module for module in model.modules() if isinstance(module, nn.Linear)}
    apart = {layer.weight for layer in layers if packed and not isinstance(layer, QuantizedLinear)}
    apart -= {own for module in model.modules() if module not in layers for own in module.parameters(recurse=False)}
    experts = _experts(model) if packed else {}
    apart |= experts.keys()
    held: int = sum(own.numel() * own.element_size() for own in {*model.parameters(), *model.buffers()} - apart)
    if packed:
        held += sum(
            count * packed_bytes((outputs, inputs), _plain(own.dtype, stored))
            for own, (count, outputs, inputs) in experts.items()
        )
        return held + sum(
            packed_bytes((layer.out_features, layer.in_features), _stored_as(layer, stored)) for layer in layers
        )
    return held + sum(layer.quantized.bytes for layer in layers if isinstance(layer, QuantizedLinear))


def _experts(model: Any) -> dict[nn.Parameter, tuple[int, int, int]]:
    """(experts, out, in) of each tensor that holds a matrix for each expert."""
    return {
        getattr(module, name): shape for module in model.modules() for name, shape in expert_matrices(module).items()
    }


def _stored_as(layer: nn.Linear, stored: torch.dtype) -> Stored:
    """How `ops.packed_linear.pack` stores the layer."""
    if isinstance(layer, QuantizedLinear):
        if layer.quantized.format == "int8":
            return "int8"
        return "four bits" if layer.in_features % BLOCK == 0 else "fp32"
    return _plain(layer.weight.dtype, stored)


def _plain(dtype: torch.dtype, stored: torch.dtype) -> Stored:
    """How numbers of a dtype are stored that came from files in another."""
    return "bf16" if torch.bfloat16 in (stored, dtype) else "fp32"
