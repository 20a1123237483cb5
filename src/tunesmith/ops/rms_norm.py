"""Root-mean-square normalisation (Zhang & Sennrich 2019, eq. 4): y = x / sqrt(mean(x²) + eps) · w."""

from typing import Any

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition, in fp32 or wider. `rms_norm` is held to this.

    Args:
        x: (..., hidden), any float dtype.
        weight: (hidden,).
        eps: added to the mean square before the root.

    Returns:
        (..., hidden), in x's dtype.
    """
    h = x if x.dtype == torch.float64 else x.float()
    return weight * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm_reference`, storing x and one number a row.

    Autograd over the definition keeps three fp32 copies of x: 12 × hidden bytes a token, against none here beyond x,
    which the residual stream keeps anyway.
    """
    out: Tensor = _RMSNorm.apply(x, weight, eps)
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)  # one pass, no squared copy
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        out: Tensor = weight * (x * scale).to(x.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # With n = x · scale:  ∂x = scale · (g·w − n · mean(g·w · n)),  ∂w = Σ g · n.
        x, weight, scale = ctx.saved_tensors
        grad = grads[0]
        normed = x * scale  # (..., hidden), wide
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed.to(grad.dtype)).reshape(-1, x.shape[-1]).sum(0, dtype=scale.dtype)
            grad_weight = grad_weight.to(weight.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            inner = grad * weight  # (..., hidden)
            along = (inner * normed).mean(-1, keepdim=True)  # (..., 1)
            grad_x = normed.mul_(-along).add_(inner).mul_(scale).to(x.dtype)
        return grad_x, grad_weight, None
