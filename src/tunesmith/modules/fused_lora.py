"""PEFT's LoRA layer, computed by our operations, also for several layers that read the same tensor."""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLoraLinear
from torch import Tensor, nn

from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.ops.lora_linear import LinearParts, lora_linears


class SharedInput:
    """Layers that read the same tensor one after another (queries, keys and values; gate and up). The first call
    computes the outputs of all, and the other calls return theirs.

    If one of them is called with a different tensor in between, all of them compute separately from then on.
    """

    def __init__(self, layers: Sequence["FusedLoraLinear"]) -> None:
        self._layers = list(layers)
        self._x: Tensor | None = None
        self._outputs: dict[FusedLoraLinear, Tensor] = {}

    def output_of(self, layer: "FusedLoraLinear", x: Tensor) -> Tensor | None:
        """The layer's output for x; None if the layer must compute it itself."""
        if self._outputs and (self._x is not x or layer not in self._outputs):
            self._layers, self._x, self._outputs = [], None, {}
        if not self._outputs and self._layers:
            parts = [each.parts(x.dtype) for each in self._layers]
            if None in parts:
                return None
            outputs = lora_linears(x, [each for each in parts if each])
            self._x, self._outputs = x, dict(zip(self._layers, outputs, strict=True))
        output = self._outputs.pop(layer, None)
        if not self._outputs:
            self._x = None
        return output

    def forget(self) -> None:
        """Drop the outputs of an aborted pass, since unused ones would keep all of its activations in memory."""
        self._x, self._outputs = None, {}


class FusedLoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer, which computes the plain case (one adapter, no dropout, no variant) with `lora_linears`."""

    shared: SharedInput | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = None if args or kwargs else self.parts(x.dtype)
        if layer is None:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        output = self.shared.output_of(self, x) if self.shared is not None else None
        return lora_linears(x, [layer])[0] if output is None else output

    def drop_pass(self) -> None:
        """Drop the shared outputs of an aborted pass."""
        if self.shared is not None:
            self.shared.forget()

    def parts(self, dtype: torch.dtype) -> LinearParts | None:
        """The weights of the plain case for inputs of that dtype; None in any other case."""
        if not self._is_plain(dtype):
            return None
        name = self.active_adapters[0]
        base = self.get_base_layer()
        weight = base.quantized if isinstance(base, QuantizedLinear) else base.weight
        return LinearParts(weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])

    def _is_plain(self, dtype: torch.dtype) -> bool:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_A[name].weight.dtype != dtype:
            return False
        dropout = self.lora_dropout[name]
        return isinstance(dropout, nn.Identity) or not self.training or dropout.p == 0
