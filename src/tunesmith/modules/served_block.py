"""A whole transformer block of the Llama kind in one native call, for the generation engine on a CPU.

Families differ in small ways, so nothing is known by a family's name: a block that has the parts is tried on inputs,
and is replaced only if the result is the same to the bit.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tunesmith.modules.fused import FusedRMSNorm
from tunesmith.modules.served_linear import ServedLinear
from tunesmith.ops import native
from tunesmith.ops.packed_linear import as_native
from tunesmith.ops.paged_attention import LayerCache, Layout, native_shape

ATTENTION, FEED_FORWARD = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


class Paged(Protocol):
    """A step of generation, `models.attention.PagedStep`."""

    layout: Layout

    def cache(self, layer: int) -> LayerCache | None: ...


@dataclass(frozen=True, slots=True)
class Attended:
    """How a block called attention.

    Attributes:
        layer: its index.
        kv_heads, heads, dim, value_dim: the shape of its heads.
        scale, window, softcap, sinks: as in `ops.paged_attention`.
    """

    layer: int
    kv_heads: int
    heads: int
    dim: int
    value_dim: int
    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None


class ServedBlock:
    """The parts of a block, ready for the native call.

    Args:
        block: of a model whose layers are served.
        attended: how it calls attention.
        gelu: whether its activation is GELU by tanh; otherwise it is SiLU.
    """

    def __init__(self, block: nn.Module, attended: Attended, gelu: bool) -> None:
        layers: list[Any] = [getattr(block.self_attn, name) for name in ATTENTION]
        layers += [getattr(block.mlp, name) for name in FEED_FORWARD]
        norms: list[Any] = [block.input_layernorm, block.post_attention_layernorm]
        if not all(isinstance(layer, ServedLinear) and layer.packed is not None for layer in layers):
            raise AttributeError("a layer is not packed")
        if not all(isinstance(norm, FusedRMSNorm) and norm.weight.dtype == torch.float32 for norm in norms):
            raise AttributeError("a norm is not fused, or not in fp32")
        self._kept = (layers, norms, attended)  # whose tensors the structure points to
        self._numbers = [layer.number for layer in layers]
        self._adapters = layers[0].adapters
        self._layer = attended.layer
        self._own = native.Block(
            (native.Packed * native.LINEARS)(*(as_native(layer.packed) for layer in layers)),
            _pointers([layer.bias for layer in layers]),
            _pointers([norm.weight for norm in norms]),
            (ctypes.c_float * 2)(*(norm.eps for norm in norms)),
            native_shape(
                attended.kv_heads, attended.heads, attended.dim, attended.value_dim, attended.scale, attended.window,
                attended.softcap,
            ),
            None if attended.sinks is None else attended.sinks.data_ptr(),
            gelu,
        )  # fmt: skip
        attention = 2 * (attended.heads + attended.kv_heads) * attended.dim
        attention += (attended.heads + attended.kv_heads) * attended.value_dim
        width, inner = layers[0].in_features, layers[4].out_features
        self._room = 1 + 2 * width + max(attention, 3 * inner)  # numbers per row

    def computes(self, paged: Paged) -> bool:
        """Whether the native call computes this step: the layer has its cache, and no row's adapter scales layers."""
        return paged.cache(self._layer) is not None and not self._adapters.factors

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, paged: Paged) -> Tensor:
        """The block's output (1, rows, hidden) for its input (1, rows, hidden) and the rows' angles (1, rows, dim)."""
        cache = paged.cache(self._layer)
        assert cache is not None
        rows = hidden.shape[1]
        out, room = hidden.clone(), hidden.new_empty(rows * self._room)
        layout = paged.layout
        cos, sin = cos.contiguous(), sin.contiguous()
        step = native.Step(
            cos.data_ptr(), sin.data_ptr(), layout.rows.data_ptr(), len(layout.rows), layout.pages.data_ptr(),
            cache.as_native(),
        )  # fmt: skip
        for index, number in enumerate(self._numbers):
            table = self._adapters.products.table(number)
            if table is not None:
                step.adapters[index], step.adapter_counts[index] = table.ctypes.data, len(table)
        native.call_named("block", self._own, step, out, room, rows)
        return out


def _pointers(tensors: list[Tensor | None]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(None if each is None else each.data_ptr() for each in tensors))


def serve_block(block: nn.Module, served: ServedBlock) -> None:
    """Compute the block's generation steps with the native call, in place; other calls as before."""
    block.forward = _forward(served, block.forward)


def _forward(served: ServedBlock, own: Callable[..., Any]) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        paged, angles = options.get("paged"), options["position_embeddings"]
        if paged is None or arguments or not served.computes(paged):
            return own(hidden_states, *arguments, **options)
        cos, sin = angles
        return served.forward(hidden_states, cos, sin, paged)

    return forward
