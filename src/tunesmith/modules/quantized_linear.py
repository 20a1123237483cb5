"""A frozen linear layer in 4 or 8 bits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.modules.transposed_linear import TransposedLinear
from tunesmith.ops.quantized import Quantized, dequantize, quantized_linear


class QuantizedLinear(nn.Linear):
    """A frozen linear layer stored as `Quantized`. Its `weight` property dequantizes the matrix on each access.

    So code that uses a linear layer's weight without training it, such as most of PEFT's methods, works on this layer.
    """

    def __init__(
        self, weight: Quantized, bias: nn.Parameter | None, dtype: torch.dtype, is_transposed: bool = False
    ) -> None:
        """Args:
        weight: (out, in).
        bias: (out,) or None.
        dtype: of the dequantized weight.
        is_transposed: whether the family stores the weight as (in, out).
        """
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.quantized = weight
        self.register_parameter("bias", bias)
        self.dtype = dtype
        self.is_transposed = is_transposed
        self._is_hf_initialized = True

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out, in) in `dtype`, without gradient. It is a copy, so writing to it has no effect."""
        return dequantize(self.quantized, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.quantized, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.quantized.format}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """Move the quantized parts to another device, but keep their dtypes."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.quantized.codes.device))
        self.dtype = probe.dtype
        self.quantized = self.quantized.to(probe.device)
        return self


def dequantized_model(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model with every quantized layer replaced, in place, by a linear layer with its dequantized weight."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuantizedLinear):
                kind = TransposedLinear if child.is_transposed else nn.Linear
                layer = kind(child.in_features, child.out_features, bias=child.bias is not None, device="meta")
                layer.weight = nn.Parameter(child.weight.to(dtype, copy=True), requires_grad=False)
                layer.bias = child.bias
                setattr(parent, name, layer)
    return model


def quantized_bytes(model: nn.Module) -> int:
    """Size of the model's quantized layers in bytes."""
    return sum(module.quantized.bytes for module in model.modules() if isinstance(module, QuantizedLinear))
