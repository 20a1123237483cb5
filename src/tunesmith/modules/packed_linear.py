"""A frozen linear layer whose weight is packed for inference on a CPU."""

import torch
from torch import Tensor, nn

from tunesmith.ops.packed_linear import PackedWeight, packed_linear, unpack


class PackedLinear(nn.Linear):
    """A linear layer stored as `PackedWeight`. Its `weight` property unpacks the matrix on each access.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        dtype: of the unpacked weight.
    """

    def __init__(self, weight: PackedWeight, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.packed, self.dtype = weight, dtype
        self.register_parameter("bias", bias)
        self._is_hf_initialized = True

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out, in) in `dtype`, a copy."""
        return unpack(self.packed).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.detach().float()
        return packed_linear(x.reshape(-1, x.shape[-1]), self.packed, bias).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stored={self.packed.stored}"
