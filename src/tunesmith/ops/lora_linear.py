"""A linear layer with LoRA (Hu et al. 2021, eq. 3): y = x Wᵀ + b + s · (x Aᵀ) Bᵀ."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith.ops.quantized import Quantized, dequantize


def lora_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """The definition. `lora_linear` is tested against this.

    Args:
        x: (..., in).
        weight: (out, in), frozen.
        bias: (out,), frozen, or None.
        a: (rank, in), trained.
        b: (out, rank), trained.
        scaling: s, which is alpha / rank, or alpha / √rank when rank-stabilized.

    Returns:
        (..., out).
    """
    return torch.nn.functional.linear(x, weight, bias) + (x @ a.T) @ b.T * scaling


class LinearParts(NamedTuple):
    """A linear layer's `weight` and `bias`, and the LoRA matrices `a` and `b`, if it has them."""

    weight: Tensor | Quantized  # (out, in)
    bias: Tensor | None = None  # (out,)
    a: Tensor | None = None  # (rank, in)
    b: Tensor | None = None  # (out, rank)
    scaling: float = 1.0


class MadeFrom(NamedTuple):
    """How to recompute a layer's input instead of storing it: `make(*inputs)`."""

    make: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def lora_linear(
    x: Tensor, weight: Tensor | Quantized, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """`lora_linear_reference`, storing only x, which its neighbors store too, and x Aᵀ, which is small.

    Autograd over the reference also keeps the unscaled product. `weight` and `bias` get no gradient. A quantized
    weight is dequantized in the forward pass and again in the backward pass (Dettmers et al. 2023, eq. 5).

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,) or None.
        a: (rank, in).
        b: (out, rank).
        scaling: s.

    Returns:
        (..., out).
    """
    return lora_linears(x, [LinearParts(weight, bias, a, b, scaling)])[0]


def lora_linears(x: Tensor, layers: Sequence[LinearParts]) -> tuple[Tensor, ...]:
    """`lora_linear` for several layers that share an input: one matmul for all their A matrices, also in backward.

    If `x.made_from` is set (a `MadeFrom`), x is not stored but recomputed in the backward pass.

    Args:
        x: (..., in).
        layers: each with `a` and `b`.

    Returns:
        Each layer's output (..., out).

    Raises:
        ValueError: a layer lacks `a` or `b`.
    """
    low_rank = []
    for layer in layers:
        if layer.a is None or layer.b is None:
            raise ValueError("a layer without A and B is not a LoRA layer")
        low_rank += [layer.a, layer.b]
    frozen = [layer._replace(a=None, b=None) for layer in layers]
    outs: tuple[Tensor, ...] = _LoRALinears.apply(x, getattr(x, "made_from", None), frozen, *low_rank)
    return tuple(out.view(*x.shape[:-1], out.shape[-1]) for out in outs)


def linear_forward(x: Tensor, layer: LinearParts) -> Tensor:
    """The layer's output (..., out) for x (..., in), without gradients."""
    rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
    y = torch.nn.functional.linear(rows, full_weight(layer.weight, x.dtype), layer.bias)  # (tokens, out)
    if layer.a is not None and layer.b is not None:
        y.addmm_(rows @ layer.a.T, layer.b.T, alpha=layer.scaling)
    return y.view(*x.shape[:-1], y.shape[-1])


class LinearGradients(NamedTuple):
    """The result of `linear_backward`; None for a gradient that is not needed."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None


def linear_backward(x: Tensor, layer: LinearParts, grad: Tensor, needed: Sequence[bool]) -> LinearGradients:
    """The gradients of x, weight, bias, a and b, each if it is needed, given the gradient of the layer's output."""
    rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
    grad = grad.reshape(-1, grad.shape[-1])  # (tokens, out)
    grad_x = grad_low = None
    if layer.a is not None and layer.b is not None:
        grad_low = (grad @ layer.b).mul_(layer.scaling)  # (tokens, rank)
    if needed[0]:
        grad_x = grad @ full_weight(layer.weight, grad.dtype)
        if grad_low is not None and layer.a is not None:
            grad_x.addmm_(grad_low, layer.a)
        grad_x = grad_x.view_as(x)
    return LinearGradients(
        grad_x,
        grad.T @ rows if needed[1] else None,
        grad.sum(0) if needed[2] else None,
        grad_low.T @ rows if needed[3] and grad_low is not None else None,
        (grad.T @ (rows @ layer.a.T)).mul_(layer.scaling) if needed[4] and layer.a is not None else None,
    )


class _LoRALinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, made_from: MadeFrom | None, layers: list[LinearParts], *low_rank: Tensor
    ) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
        all_a = torch.cat(low_rank[::2])  # (ranks, in)
        low = rows @ all_a.T  # (tokens, ranks)
        outs = []
        for layer, part, b in zip(layers, _parts(low, low_rank), low_rank[1::2], strict=True):
            y = torch.nn.functional.linear(rows, full_weight(layer.weight, x.dtype), layer.bias)  # (tokens, out)
            outs.append(y.addmm_(part, b.T, alpha=layer.scaling))  # not a view: callers may write into it
        ctx.make = None if made_from is None else made_from.make
        ctx.layers = layers  # frozen, so autograd need not track them
        ctx.shape = x.shape
        ctx.save_for_backward(low, *low_rank, *((x,) if made_from is None else made_from.inputs))
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        low, *saved = ctx.saved_tensors
        low_rank, inputs = saved[: 2 * len(ctx.layers)], saved[2 * len(ctx.layers) :]
        grad_low = torch.empty_like(low)
        for layer, grad, part, b in zip(ctx.layers, grads, _parts(grad_low, low_rank), low_rank[1::2], strict=True):
            torch.mul(grad @ b, layer.scaling, out=part)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grads[0] @ full_weight(ctx.layers[0].weight, low.dtype)
            for layer, grad in zip(ctx.layers[1:], grads[1:], strict=True):
                grad_x.addmm_(grad, full_weight(layer.weight, low.dtype))
            grad_x = grad_x.addmm_(grad_low, torch.cat(low_rank[::2])).view(ctx.shape)
        grads_low_rank: list[Tensor | None] = [None] * len(low_rank)
        if any(ctx.needs_input_grad[3:]):
            x = ctx.make(*inputs) if ctx.make is not None else inputs[0]
            all_grad_a = grad_low.T @ x.reshape(-1, x.shape[-1])  # (ranks, in)
            grads_low_rank[::2] = all_grad_a.split([len(a) for a in low_rank[::2]])
            grads_low_rank[1::2] = [
                (grad.T @ part).mul_(layer.scaling)
                for layer, grad, part in zip(ctx.layers, grads, _parts(low, low_rank), strict=True)
            ]
        return (grad_x, None, None, *grads_low_rank)


def _parts(low: Tensor, low_rank: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Split (tokens, ranks) into each layer's columns."""
    return tuple(low.split([len(a) for a in low_rank[::2]], 1))


def full_weight(weight: Tensor | Quantized, dtype: torch.dtype) -> Tensor:
    """The weight, dequantized if it is quantized."""
    return dequantize(weight, dtype) if isinstance(weight, Quantized) else weight
