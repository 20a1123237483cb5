"""Replace the linear layers of a base's blocks one by one as they are read: quantized, or packed for inference.

With transformers' hook for quantizers, it reads a file's tensors one by one, so that only the new layers and one matrix
as stored are in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tunesmith.errors import UserError
from tunesmith.models.architecture import blocks
from tunesmith.models.attention import takes_attention
from tunesmith.modules.packed_linear import PackedLinear
from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.ops.packed_linear import pack
from tunesmith.ops.quantized import Format, quantize

METHOD = "tunesmith"


@dataclass(frozen=True)
class Replacement:
    """What is put in place of linear layers.

    Attributes:
        modules: of a model, those whose linear layers are replaced.
        make: the new layer, from a weight as read; the old layer, an `nn.Linear` (out, in) or a `Conv1D` (in, out); and
            the model.
    """

    modules: Callable[[PreTrainedModel], list[nn.Module]]
    make: Callable[[Tensor, Any, PreTrainedModel], nn.Module]


def quantizing(format: Format, double_quantization: bool) -> Replacement:
    """Linear layers in 4 or 8 bits."""

    def quantized(weight: Tensor, layer: Any, model: PreTrainedModel) -> nn.Module:
        is_transposed = isinstance(layer, Conv1D)
        values = quantize(weight.T if is_transposed else weight, format, double_quantization)
        return QuantizedLinear(values, layer.bias, model.dtype, is_transposed)

    return Replacement(blocks, quantized)


def packing() -> Replacement:
    """Linear layers that are packed for inference on a CPU, in models that the generation engine may compute."""

    def packed(weight: Tensor, layer: Any, model: PreTrainedModel) -> nn.Module:
        return PackedLinear(pack(weight.T if isinstance(layer, Conv1D) else weight), layer.bias, model.dtype)

    def modules(model: PreTrainedModel) -> list[nn.Module]:
        try:
            return blocks(model) if takes_attention(model) else []
        except UserError:
            return []

    return Replacement(modules, packed)


def replacing(replacement: Replacement) -> dict[str, Any]:
    """Arguments for `from_pretrained` with which it replaces the layers as it reads them."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(_Config)
        register_quantizer(METHOD)(_Quantizer)
    return {"quantization_config": _Config(replacement)}


def without_quantization_marks(model: PreTrainedModel) -> PreTrainedModel:
    """Remove the attributes by which transformers marks a model as quantized. The layers behave as linear layers, and
    the model is not saved as a quantized one."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.is_quantized = False
            if hasattr(module, "hf_quantizer"):
                del module.hf_quantizer
            if hasattr(module.config, "quantization_config"):
                del module.config.quantization_config
    return model


class _Config(QuantizationConfigMixin):
    def __init__(self, replacement: Replacement) -> None:
        self.quant_method = METHOD
        self.replacement = replacement


class _Quantizer(HfQuantizer):
    """Called by transformers for each parameter as it is read."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        parents = self.quantization_config.replacement.modules(model)
        chosen = {module for parent in parents for module in parent.modules()}
        self.layers = {
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module in chosen
        }

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        return param_name.endswith(".weight") and param_name.removesuffix(".weight") in self.layers

    def get_quantize_ops(self) -> "_Replace":
        return _Replace(self.quantization_config.replacement)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Replace(ConversionOps):
    """Replaces the layer whose weight was read."""

    def __init__(self, replacement: Replacement) -> None:
        self.replacement = replacement

    def convert(
        self, input_dict: dict[str, Any], model: Any = None, missing_keys: set[str] | None = None, **_: Any
    ) -> dict[str, Tensor]:
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            path = name.removesuffix(".weight")
            model.set_submodule(path, self.replacement.make(weight, model.get_submodule(path), model))
            (missing_keys or set()).discard(name)
        return {}
