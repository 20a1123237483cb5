"""Rotary position embedding (Su et al. 2021, eq. 34), pairs being (i, i + dim / 2) as transformers lays them out."""

from typing import Any

import torch
from torch import Tensor

from tunesmith.ops import native


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition. `rotary` is held to this.

    Args:
        x: (1, heads, tokens, dim).
        cos: (1, tokens, dim), of each token's angles.
        sin: (1, tokens, dim).

    Returns:
        (1, heads, tokens, dim): each pair turned by its angle.
    """
    low, high = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotary_reference`, storing no x: the gradient is turned back."""
    if not native.takes(x, cos, sin):
        return rotary_reference(x, cos, sin)
    out: Tensor = _Rotary.apply(x[0].transpose(0, 1), cos[0], sin[0])
    return out.transpose(0, 1)[None]


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, back=True), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """x (tokens, heads, dim)."""
    if x.stride(2) != 1:
        x = x.contiguous()
    out = x.new_empty(x.shape)
    native.call("rotary", x.dtype, x, cos, sin, out, *x.shape, x.stride(0), x.stride(1), back)
    return out
