"""A linear layer as the generation engine runs it: packed on a CPU, and with the adapters of the batch's rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.modules.packed_linear import PackedLinear
from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.ops import native
from tunesmith.ops.grouped_ia3 import Factors, RowFactors
from tunesmith.ops.grouped_lora import LoraLayers, LoraWeights, RowProducts
from tunesmith.ops.packed_linear import PackedWeight, pack, packed_linear, unpack


@dataclass(frozen=True, slots=True)
class AdapterLayers:
    """What an adapter does to the served layers.

    Attributes:
        products: LoRA's, for every layer by its number; empty: none.
        factors: IA3's, by the layer's number.
    """

    products: LoraLayers = field(default_factory=LoraLayers)
    factors: Mapping[int, Factors] = field(default_factory=dict)

    @property
    def own(self) -> tuple[LoraWeights | Factors, ...]:
        """What there is of every layer."""
        return (*(weights for weights in self.products if weights is not None), *self.factors.values())

    @property
    def has_effect(self) -> bool:
        """Whether any layer computes something else than without the adapter."""
        return any(each.has_effect for each in self.own)

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.own)


AdapterRows = tuple[int, int, AdapterLayers]
"""The first of consecutive rows of a batch, how many, and what their adapter does."""


class BatchAdapters:
    """What all served layers of a model share: the adapters of the batch that is computed now."""

    def __init__(self) -> None:
        self.use(())

    def use(self, rows: Sequence[AdapterRows]) -> None:
        """Compute these rows with their adapters from now on, and others without."""
        self.products = RowProducts([(first, count, own.products) for first, count, own in rows if own.products])
        self.factors = RowFactors([(first, count, own.factors) for first, count, own in rows])


class ServedLinear(nn.Module):
    """In place of a linear layer, for inference.

    Args:
        layer: which it replaces.
        number: of the layer in the model, by which adapters know it.
        adapters: of the current batch.
    """

    def __init__(self, layer: nn.Linear, number: int, adapters: BatchAdapters) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.number, self.adapters = number, adapters
        self.dtype = layer.dtype if isinstance(layer, PackedLinear | QuantizedLinear) else layer.weight.dtype
        self.packed = _packed(layer, self.dtype)
        self.layer = layer if self.packed is None else None
        if self.packed is not None:
            self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().float(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """(out, in), a copy if it is packed, for code that reads a layer's weight."""
        if self.layer is not None:
            return self.layer.weight
        assert self.packed is not None
        return unpack(self.packed).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        rows = self.adapters.factors.scaled_inputs(self.number, rows if self.packed is None else rows.float())
        if self.packed is None:
            assert self.layer is not None
            out: Tensor = self.layer(rows)
        else:
            out = packed_linear(rows, self.packed, self.bias)
        self.adapters.products.add(self.number, rows, out)
        self.adapters.factors.scale_outputs(self.number, out)
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        stored = "" if self.packed is None else f", stored={self.packed.stored}"
        return f"in_features={self.in_features}, out_features={self.out_features}{stored}"


def _packed(layer: nn.Linear, dtype: torch.dtype) -> PackedWeight | None:
    """The layer's matrix, packed; None if the kernels do not compute such layers."""
    if isinstance(layer, PackedLinear):
        return layer.packed
    weight = layer.quantized if isinstance(layer, QuantizedLinear) else layer.weight
    device = weight.device if isinstance(weight, Tensor) else weight.codes.device
    return pack(weight) if can_pack(dtype, device) else None


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether linear layers are packed for inference."""
    return device.type == "cpu" and native.library() is not None and dtype in (torch.float32, torch.bfloat16)


def serve_linears(model: PreTrainedModel) -> tuple[BatchAdapters, dict[str, int]]:
    """Replace every linear layer of the model, in place; its weights are then in memory only as packed. A model whose
    layers have been replaced before stays as it is.

    Returns:
        Where a batch's adapters are put, and the number of each replaced layer by its name.
    """
    before = {name: module for name, module in model.named_modules() if isinstance(module, ServedLinear)}
    if before:
        return next(iter(before.values())).adapters, {name: module.number for name, module in before.items()}
    adapters, numbers = BatchAdapters(), dict[str, int]()
    made: dict[nn.Module, ServedLinear] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, nn.Linear):
            continue
        parent_name, _, own_name = name.rpartition(".")
        if module not in made:
            made[module] = ServedLinear(module, len(made), adapters)
        setattr(model.get_submodule(parent_name), own_name, made[module])
        numbers[name] = made[module].number
    return adapters, numbers
