"""A linear layer with a low-rank addition (Hu et al. 2021, eq. 3): y = x Wᵀ + b + s · (x Aᵀ) Bᵀ."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class LinearParts(NamedTuple):
    """A linear layer's numbers: frozen `weight` and `bias`, and what a low-rank addition trains beside them."""

    weight: Tensor | Quantised  # (out, in)
    bias: Tensor | None = None  # (out,)
    a: Tensor | None = None  # (rank, in)
    b: Tensor | None = None  # (out, rank)
    scaling: float = 1.0


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


def linear_forward(x: Tensor, layer: LinearParts) -> Tensor:
    """The layer's value at x (..., in), without gradients."""
    rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
    y = torch.nn.functional.linear(rows, whole(layer.weight, x.dtype), layer.bias)  # (tokens, out)
    if layer.a is not None and layer.b is not None:
        y.addmm_(rows @ layer.a.T, layer.b.T, alpha=layer.scaling)
    return y.view(*x.shape[:-1], y.shape[-1])


class LinearGradients(NamedTuple):
    """What `linear_backward` found; None where it was not asked for."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None


def linear_backward(x: Tensor, layer: LinearParts, grad: Tensor, wanted: Sequence[bool]) -> LinearGradients:
    """The gradients of x, weight, bias, a and b, each where it is wanted, given that of the layer's value."""
    rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
    grad = grad.reshape(-1, grad.shape[-1])  # (tokens, out)
    grad_x = grad_low = None
    if layer.a is not None and layer.b is not None:
        grad_low = (grad @ layer.b).mul_(layer.scaling)  # (tokens, rank)
    if wanted[0]:
        grad_x = grad @ whole(layer.weight, grad.dtype)
        if grad_low is not None and layer.a is not None:
            grad_x.addmm_(grad_low, layer.a)
        grad_x = grad_x.view_as(x)
    return LinearGradients(
        grad_x,
        grad.T @ rows if wanted[1] else None,
        grad.sum(0) if wanted[2] else None,
        grad_low.T @ rows if wanted[3] and grad_low is not None else None,
        (grad.T @ (rows @ layer.a.T)).mul_(layer.scaling) if wanted[4] and layer.a is not None else None,
    )


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | Quantised, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.weight = weight  # frozen: no gradient, no version to watch
        ctx.scaling = scaling
        return linear_forward(x, LinearParts(weight, bias, a, b, scaling))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        layer = LinearParts(ctx.weight, None, a, b, ctx.scaling)
        found = linear_backward(x, layer, grads[0], [wanted[0], False, False, wanted[3], wanted[4]])
        return found.x, None, None, found.a, found.b, None


def whole(weight: Tensor | Quantised, dtype: torch.dtype) -> Tensor:
    """The weight in full, for one product."""
    return dequantise(weight, dtype) if isinstance(weight, Quantised) else weight
