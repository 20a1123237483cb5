"""The activation of a gated MLP (Shazeer 2020, "GLU variants improve transformer"): act(gate) · up."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from tunesmith.ops import cuda, native
from tunesmith.ops.lora_linear import LinearParts, linear_backward, linear_forward
from tunesmith.ops.quantized import Quantized

Activation = Literal["silu", "gelu_tanh"]


def gated_reference(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """The definition. `gated` is tested against this.

    Args:
        gate: (..., inner).
        up: (..., inner).
        activation: `silu` for SwiGLU, or `gelu_tanh` for GeGLU with the tanh approximation of GELU.

    Returns:
        (..., inner).
    """
    return (silu(gate) if activation == "silu" else gelu(gate, approximate="tanh")) * up


def gated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """`gated_reference`, storing only gate and up. The native kernels make one pass over memory in each direction."""
    out: Tensor = _Gated.apply(gate, up, activation)
    return out


def gated_backward(gate: Tensor, up: Tensor, grad: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up, given that of the output."""
    if native.takes(gate, up, grad):
        gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
        outs = torch.empty_like(gate), torch.empty_like(up)
        native.call("gated_backward", gate.dtype, gate, up, grad, *outs, gate.numel(), activation == "gelu_tanh")
        return outs
    if (kernels := _liger(gate, activation)) is not None:
        backward = kernels.swiglu_backward if activation == "silu" else kernels.geglu_backward
        grad_gate, grad_up = backward(gate.clone(), up.clone(), grad.contiguous())[:2]  # the kernel works in place
        return grad_gate, grad_up
    with torch.enable_grad():
        inputs = gate.detach().requires_grad_(), up.detach().requires_grad_()
        out = gated_reference(*inputs, activation)
    grad_gate, grad_up = torch.autograd.grad(out, inputs, grad)
    return grad_gate, grad_up


def gated_forward(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """act(gate) · up, without gradients."""
    if (kernels := _liger(gate, activation)) is not None:
        out: Tensor = (kernels.swiglu_forward if activation == "silu" else kernels.geglu_forward)(gate, up)[-1]
        return out
    if not native.takes(gate, up):
        return gated_reference(gate, up, activation)
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    native.call("gated", gate.dtype, gate, up, out, gate.numel(), activation == "gelu_tanh")
    return out


def _liger(gate: Tensor, activation: Activation) -> Any:
    """liger-kernel's module for the activation; None if it does not support the tensor."""
    if not gate.is_cuda or gate.dtype == torch.float64:
        return None
    return cuda.liger("swiglu" if activation == "silu" else "geglu")


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return gated_forward(gate, up, activation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return *gated_backward(gate, up, grads[0], ctx.activation), None


def gated_linear(gate: Tensor, up: Tensor, activation: Activation, layer: LinearParts) -> Tensor:
    """The layer applied to `gated(gate, up)`, which is not stored but recomputed in the backward pass.

    The layer's weight and bias get gradients if they require them; a quantized weight never does.

    Args:
        gate: (..., inner).
        up: (..., inner).
        activation: as in `gated`.
        layer: the linear layer, from inner to out.

    Returns:
        (..., out).
    """
    out: Tensor = _GatedLinear.apply(gate, up, activation, *layer)
    return out


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        activation: Activation,
        weight: Tensor | Quantized,
        bias: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        scaling: float,
    ) -> Tensor:
        stored = weight if isinstance(weight, Tensor) else None
        ctx.save_for_backward(gate, up, stored, a, b)
        ctx.quantized = weight if stored is None else None
        ctx.activation, ctx.scaling = activation, scaling
        return linear_forward(gated_forward(gate, up, activation), LinearParts(weight, bias, a, b, scaling))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, stored, a, b = ctx.saved_tensors
        layer = LinearParts(ctx.quantized if stored is None else stored, None, a, b, ctx.scaling)
        needed = ctx.needs_input_grad
        x = gated_forward(gate, up, ctx.activation)
        gradients = linear_backward(x, layer, grads[0], [needed[0] or needed[1], *needed[3:7]])
        grad_gate = grad_up = None
        if gradients.x is not None:
            grad_gate, grad_up = gated_backward(gate, up, gradients.x, ctx.activation)
        return grad_gate, grad_up, None, gradients.weight, gradients.bias, gradients.a, gradients.b, None
