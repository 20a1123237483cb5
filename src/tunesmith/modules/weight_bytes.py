"""The memory of a model's weights, in whatever form its modules hold them."""

from torch import nn

from tunesmith.modules.packed_linear import PackedLinear
from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.modules.served_experts import ServedExperts
from tunesmith.modules.served_linear import ServedLinear
from tunesmith.ops.packed_linear import PackedWeight
from tunesmith.ops.quantized import Quantized


def weight_bytes(model: nn.Module) -> int:
    """The bytes of a model's weights as they are in memory, packed or quantized layers included.

    Args:
        model: as the engine or transformers holds it.

    Returns:
        Bytes; what several layers share counts once.
    """
    stored = {id(weight): weight.bytes for module in model.modules() for weight in _stored(module)}
    plain = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return sum(stored.values()) + sum(each.numel() * each.element_size() for each in plain.values())


def _stored(module: nn.Module) -> tuple[PackedWeight | Quantized, ...]:
    """The module's matrices that are no parameters."""
    if isinstance(module, ServedExperts):
        return (*module.first.weights, *module.last.weights)
    if isinstance(module, QuantizedLinear):
        return (module.quantized,)
    packed = module.packed if isinstance(module, ServedLinear | PackedLinear) else None
    return () if packed is None else (packed,)
