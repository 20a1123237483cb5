"""Dropout (Srivastava et al. 2014) that recomputes its mask from a seed instead of storing it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as dropout_reference

from tunesmith.ops import native


def dropout(x: Tensor, share: float) -> Tensor:
    """Zero a share of x's elements and divide the rest by 1 − share.

    The native kernel computes each random number from a counter. PyTorch draws them one after another from a generator,
    which takes a CPU four nanoseconds per number, and stores a mask.

    Args:
        x: any shape.
        share: the dropout probability.

    Returns:
        Like x.
    """
    if share <= 0.0 or share >= 1.0 or not native.takes(x):
        return dropout_reference(x, share)
    out: Tensor = _Dropout.apply(x, share)
    return out


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        ctx.seed = native.random_seed()
        return _apply_dropout(x, share, ctx.seed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _apply_dropout(grads[0], ctx.share, ctx.seed), None


def _apply_dropout(x: Tensor, share: float, seed: int) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    native.call("dropout", x.dtype, x, out, x.numel(), seed, share)
    return out
