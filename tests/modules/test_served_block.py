"""A block in one native call computes the bits of its modules, with adapters too, and only where it does."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from families import config_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.inference.paged_model import PagedModel, Piece, serve_blocks
from tunesmith.models.attention import use_document_attention
from tunesmith.modules.served_linear import AdapterLayers
from tunesmith.ops import native
from tunesmith.ops.grouped_lora import LoraLayers, LoraWeights

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built here")

IDS = [5, 9, 17, 3, 40, 22, 8]


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    config = config_of(family, 64, eos_token_id=None, pad_token_id=None, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that a mistake would show in
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert use_document_attention(model)
    return model


def logits_of(paged: PagedModel, with_adapter: bool) -> Tensor:
    """Two sequences in one batch, the first in two parts; the second with an adapter on every layer."""
    torch.manual_seed(1)
    sizes = [paged.shape.sizes[number] for number in sorted(paged.shape.sizes)]
    weights = LoraLayers([LoraWeights(torch.randn(3, i) / i, torch.randn(3, o), 0.7) for i, o in sizes])
    paged.allocate(3)
    first = paged.compute([Piece(IDS[:3], 0, [0], 0)])
    rows = [(4, 5, AdapterLayers(products=weights))] if with_adapter else []
    second = paged.compute([Piece(IDS[3:], 3, [0], 0), Piece(IDS[:5], 0, [2], 0)], rows)
    return torch.cat([first, second])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_one_call_computes_the_bits_of_the_blocks_modules(family: str, with_adapter: bool) -> None:
    model = model_of(family)
    modules, blocks = PagedModel(copy.deepcopy(model)), PagedModel(model)
    blocks.allocate(1)
    assert serve_blocks(blocks) == 2
    expected, found = logits_of(modules, with_adapter), logits_of(blocks, with_adapter)
    assert torch.equal(found, expected)
    if with_adapter:
        assert not torch.allclose(found, logits_of(blocks, False))


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "olmo2", "granite", "gpt2"])
def test_blocks_that_compute_something_else_keep_their_modules(family: str) -> None:
    paged = PagedModel(model_of(family))
    assert serve_blocks(paged) == 0
    assert np.isfinite(logits_of(paged, True).numpy()).all()


def test_a_model_that_is_served_again_keeps_its_layers() -> None:
    model = model_of("gpt2")
    PagedModel(model)
    served = [type(module).__name__ for module in model.modules()]
    assert "RowwiseActivation" in served
    PagedModel(model)
    assert [type(module).__name__ for module in model.modules()] == served
