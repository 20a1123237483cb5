"""Quantize a base's linear layers to 4 or 8 bits, one by one as they are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tunesmith.models.architecture import blocks
from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.ops.quantized import Format, quantize

METHOD = "tunesmith"


@contextmanager
def quantizing(format: Format, double_quantization: bool) -> Iterator[dict[str, Any]]:
    """Arguments for `from_pretrained` that quantize while it loads, through transformers' hook for quantizers.

    With a quantizer, transformers reads the file's tensors one by one, so that only the quantized model and one
    unquantized matrix are in memory.
    """
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(_Config)
        register_quantizer(METHOD)(_Quantizer)
    yield {"quantization_config": _Config(format, double_quantization)}


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
    def __init__(self, format: Format, double_quantization: bool) -> None:
        self.quant_method = METHOD
        self.format: Format = format
        self.double_quantization = double_quantization


class _Quantizer(HfQuantizer):
    """Called by transformers for each parameter as it is read."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        in_blocks = {id(module) for block in blocks(model) for module in block.modules()}
        self.layers = {
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and id(module) in in_blocks
        }

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        return param_name.endswith(".weight") and param_name.removesuffix(".weight") in self.layers

    def get_quantize_ops(self) -> "_Quantize":
        return _Quantize(self.quantization_config)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Quantize(ConversionOps):
    """Replaces the layer whose weight was read with a `QuantizedLinear`."""

    def __init__(self, config: _Config) -> None:
        self.config = config

    def convert(
        self, input_dict: dict[str, Any], model: Any = None, missing_keys: set[str] | None = None, **_: Any
    ) -> dict[str, Tensor]:
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            path = name.removesuffix(".weight")
            layer = model.get_submodule(path)
            is_transposed = isinstance(layer, Conv1D)
            quantized = quantize(
                weight.T if is_transposed else weight, self.config.format, self.config.double_quantization
            )
            model.set_submodule(path, QuantizedLinear(quantized, layer.bias, model.dtype, is_transposed))
            (missing_keys or set()).discard(name)
        return {}
