"""A linear layer with a low-rank addition (Hu et al. 2021, eq. 3): y = x Wᵀ + b + s · (x Aᵀ) Bᵀ."""

from typing import Any

import torch
from torch import Tensor

from tunesmith.ops.quantised import Quantised, dequantise


def lora_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """The definition. `lora_linear` is held to this.

    Args:
        x: (..., in).
        weight: (out, in), frozen.
        bias: (out,), frozen, or None.
        a: (rank, in), trained.
        b: (out, rank), trained.
        scaling: s, which is alpha / rank, or alpha / √rank when rank-stabilised.

    Returns:
        (..., out).
    """
    return torch.nn.functional.linear(x, weight, bias) + (x @ a.T) @ b.T * scaling


def lora_linear(
    x: Tensor, weight: Tensor | Quantised, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """`lora_linear_reference`, storing nothing for the backward pass but x, which its neighbours store too.

    Autograd over the definition also keeps x Aᵀ and the unscaled product. Recomputing x Aᵀ costs rank / out of the
    layer's own product. `weight` and `bias` get no gradient. A quantised weight is made whole for the forward and again
    for the backward pass (Dettmers et al. 2023, eq. 5).
    """
    out: Tensor = _LoRALinear.apply(x, weight, bias, a, b, scaling)
    return out


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | Quantised, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.weight = weight  # frozen: no gradient, no version to watch
        ctx.scaling = scaling
        rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
        y = torch.nn.functional.linear(rows, _whole(weight, x.dtype), bias)  # (tokens, out)
        y.addmm_(rows @ a.T, b.T, alpha=scaling)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # (tokens, out)
        grad_low = (grad @ b).mul_(ctx.scaling)  # (tokens, rank)
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ _whole(ctx.weight, grad.dtype)).addmm_(grad_low, a).view_as(x)
        if ctx.needs_input_grad[3]:
            grad_a = grad_low.T @ rows
        if ctx.needs_input_grad[4]:
            grad_b = (grad.T @ (rows @ a.T)).mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None


def _whole(weight: Tensor | Quantised, dtype: torch.dtype) -> Tensor:
    return dequantise(weight, dtype) if isinstance(weight, Quantised) else weight
