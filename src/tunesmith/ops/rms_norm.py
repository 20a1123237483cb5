"""Root-mean-square normalization (Zhang & Sennrich 2019, eq. 4): y = x / sqrt(mean(x²) + eps) · w."""

from typing import Any

import torch
from torch import Tensor

from tunesmith.ops import cuda, native


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition, in fp32 or wider. `rms_norm` is tested against this.

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
    """`rms_norm_reference`, storing only x and one scale per row.

    Autograd over the reference keeps three fp32 copies of x, 12 × hidden bytes per token. This keeps nothing beyond x,
    which the residual stream keeps anyway.

    Args:
        x: (..., hidden), any float dtype.
        weight: (hidden,).
        eps: added to the mean square before the root.

    Returns:
        (..., hidden), in x's dtype.
    """
    kernels = cuda.liger("rms_norm") if x.is_cuda and x.dtype != torch.float64 else None
    out: Tensor = (
        kernels.LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)
        if kernels
        else _RMSNorm.apply(x, weight, eps)
    )
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if native.takes(x, weight):
            x = x.contiguous()
            out: Tensor = torch.empty_like(x)
            scale = x.new_empty(*x.shape[:-1], 1, dtype=wide_dtype)
            native.call("rms_norm", x.dtype, x, weight, out, scale, scale.numel(), x.shape[-1], eps)
            ctx.save_for_backward(x, weight, scale)
            return out
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide_dtype)  # one pass, no squared copy
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        out = (x * scale).to(x.dtype)
        out.mul_(weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # With n = x · scale:  ∂x = scale · (g·w − n · mean(g·w · n)),  ∂w = Σ g · n.
        x, weight, scale = ctx.saved_tensors
        grad = grads[0]
        if native.takes(x, weight, grad):
            return *_native_backward(x, weight, scale, grad.contiguous(), ctx.needs_input_grad[1]), None
        normed = x * scale  # (..., hidden), fp32 or wider_dtype
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed.to(grad.dtype)).reshape(-1, x.shape[-1]).sum(0, dtype=scale.dtype)
            grad_weight = grad_weight.to(weight.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            inner = grad * weight  # (..., hidden)
            mean = (inner * normed).mean(-1, keepdim=True)  # (..., 1)
            grad_x = normed.mul_(-mean).add_(inner).mul_(scale).to(x.dtype)
        return grad_x, grad_weight, None


def _native_backward(
    x: Tensor, weight: Tensor, scale: Tensor, grad: Tensor, needs_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """The backward pass in one pass over memory. Each thread sums the weight's gradient in fp32."""
    grad_x = torch.empty_like(x)
    sums = scale.new_zeros(torch.get_num_threads(), x.shape[-1]) if needs_weight else None
    native.call("rms_norm_backward", x.dtype, x, weight, scale, grad, grad_x, sums, scale.numel(), x.shape[-1])
    return grad_x, None if sums is None else sums.sum(0).to(weight.dtype)
