"""Rotary position embedding (Su et al. 2021, eq. 34), with pairs (i, i + dim / 2) as in transformers."""

from typing import Any

import torch
from torch import Tensor

from tunesmith.ops import native


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition. `rotary` is tested against this.

    Args:
        x: (1, heads, tokens, dim).
        cos: (1, tokens, dim), the cosines of each token's angles.
        sin: (1, tokens, dim), their sines.

    Returns:
        (1, heads, tokens, dim), each pair rotated by its angle.
    """
    low, high = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotary_reference`, which does not store x: the backward pass rotates the gradient back."""
    if not native.takes(x, cos, sin):
        return rotary_reference(x, cos, sin)
    out: Tensor = _Rotary.apply(x[0].transpose(0, 1), cos[0], sin[0])
    return out.transpose(0, 1)[None]


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, inverse=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, sin, inverse=True), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    """Rotate x (tokens, heads, dim), or rotate it back."""
    if x.stride(2) != 1:
        x = x.contiguous()
    out = x.new_empty(x.shape)
    native.call("rotary", x.dtype, x, cos, sin, out, *x.shape, x.stride(0), x.stride(1), inverse)
    return out
