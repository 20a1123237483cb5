"""Dropout (Srivastava et al. 2014) whose places are made again from a seed and not stored."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as dropout_reference

from tunesmith.ops import native


def dropout(x: Tensor, share: float) -> Tensor:
    """x with a share of its numbers zeroed and the rest divided by 1 − share.

    The native kernel makes a random number from a counter where PyTorch's takes one after another from a generator,
    which a CPU does at a number in four nanoseconds, and keeps a mask.
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
        return _dropped(x, share, ctx.seed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _dropped(grads[0], ctx.share, ctx.seed), None


def _dropped(x: Tensor, share: float, seed: int) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    native.call("dropout", x.dtype, x, out, x.numel(), seed, share)
    return out
