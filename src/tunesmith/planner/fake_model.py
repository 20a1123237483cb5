"""The model of a run without its weights, ready to be simulated in `fake_tensors`."""

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from tunesmith.config.base import Base
from tunesmith.config.head import Head
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.architecture import blocks
from tunesmith.models.attention import branched_states, branches, packed_states, use_document_attention
from tunesmith.models.load import config_of, model_class, not_loaded
from tunesmith.modules.fused import use_fused_ops
from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.modules.transposed_linear import TransposedLinear, as_linear
from tunesmith.ops.quantized import Format, dequantize, empty_quantized, quantize
from tunesmith.planner.fake_tensors import real_numbers, small_copy


class FakeReference(ModelReference):
    """A reference to another model, whose weights are not read."""

    def packing_model(self, dtype: torch.dtype, device: torch.device) -> Any:
        model = fake_model(self.base, dtype, self.head).requires_grad_(False)
        if pack_fake(model):
            use_fused_ops(model, small_copy)
        return model


def pack_fake(model: PreTrainedModel) -> bool:
    """`models.attention.use_document_attention` and `branches` for a fake model: without values, the trials only show
    that the model passes their arguments on."""
    packed = use_document_attention(model, lambda model: packed_states(model) is not None)
    branches(model, lambda model: branched_states(model) is not None)
    return packed


def fake_model(base: Base, dtype: torch.dtype, head: Head | None = None, layers: int | None = None) -> Any:
    """The model that `models.load.load_model` would return, with fake tensors. Reads only the config. Call it in
    `fake_tensors`.

    Args:
        base: as in `load_model`.
        dtype: as in `load_model`.
        head: as in `load_model`.
        layers: number of blocks. Default: all.
    """
    options: dict[str, Any] = {"trust_remote_code": base.trust_remote_code}
    config = config_of(base)
    try:
        kind = model_class(config, head)
        if layers is not None:
            _truncate(config.get_text_config(), layers)
        if dtype == torch.float32:  # PyTorch's grouped matrix products have no meta kernel in fp32
            options["experts_implementation"] = "batched_mm"
        model = as_linear(kind.from_config(config, dtype=dtype, **options).eval())
        model.tunesmith_base = base
    except (OSError, ValueError) as error:
        raise not_loaded(base, "model", error) from error
    if base.quantized:
        _quantize(model, base.weights, base.double_quantization)  # type: ignore[arg-type]
    return model


def _truncate(config: PretrainedConfig, layers: int) -> None:
    """Keep only the first layers, also in every list that has one entry for each layer."""
    all_layers = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == all_layers:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers


def _quantize(model: PreTrainedModel, format: Format, double_quantization: bool) -> None:
    """Replace the blocks' linear layers with quantized layers that have no values."""
    with real_numbers():  # the code tables are cached, so they need real values
        dequantize(quantize(torch.ones(64, 64), format, double_quantization), model.dtype)
    for block in blocks(model):
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    weight = empty_quantized((child.out_features, child.in_features), format, double_quantization)
                    is_transposed = isinstance(child, TransposedLinear)
                    setattr(parent, name, QuantizedLinear(weight, child.bias, model.dtype, is_transposed))
