"""A quantized base is loaded layer by layer, and equals the original model with rounded weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matrix import make_bases
from small_models import small_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tunesmith.config.base import Base
from tunesmith.models.architecture import blocks
from tunesmith.models.layer_by_layer import packing
from tunesmith.models.load import load_model
from tunesmith.modules.quantized_linear import QuantizedLinear, dequantized_model, quantized_bytes
from tunesmith.ops.quantized import dequantize, quantize


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases")
    make_bases(directory)
    return directory


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("weights", ["int8", "nf4", "fp4"])
def test_a_quantized_base_is_the_original_with_the_blocks_matrices_rounded(
    weights: str, family: str, bases: Path
) -> None:
    original = AutoModelForCausalLM.from_pretrained(bases / family, dtype=torch.float32)
    model = load_model(Base(path=str(bases / family), weights=weights), torch.float32)  # type: ignore[arg-type]
    rounded = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(rounded) == {"llama": 14, "gpt2": 8}[family], "every linear layer of two blocks, and no head"
    for name in rounded:
        layer, original_layer = model.get_submodule(name), original.get_submodule(name)
        stored = original_layer.weight if family == "llama" else original_layer.weight.T
        expected = dequantize(quantize(stored.detach(), weights, weights != "int8"), torch.float32)  # type: ignore[arg-type]
        torch.testing.assert_close(layer.weight, expected)
        with torch.no_grad():
            original_layer.weight.copy_(expected if family == "llama" else expected.T)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
        again = dequantized_model(model)(input_ids=ids).logits
    torch.testing.assert_close(again, original(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def test_casting_a_model_leaves_its_scales_as_they_are(bases: Path) -> None:
    model = load_model(Base(path=str(bases / "llama"), weights="nf4"), torch.float32)
    layer = model.model.layers[0].mlp.up_proj
    before = layer.weight
    model.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.quantized.scale_offset.dtype == torch.float32
    torch.testing.assert_close(layer.weight, before.bfloat16())


PEAK = """
import resource, sys, torch
from tunesmith.models.load import load_model
from tunesmith.config.base import Base
import peft, bitsandbytes
tiny = load_model(Base(path=sys.argv[2], weights="nf4"), torch.bfloat16)
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024
import threading, time
before, most, stop = anonymous(), 0, False
def watch():
    global most
    while not stop:
        most = max(most, anonymous()); time.sleep(0.001)
watcher = threading.Thread(target=watch); watcher.start()
model = load_model(Base(path=sys.argv[1], weights="nf4"), torch.bfloat16)
stop = True; watcher.join()
print(most - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
@pytest.mark.long
def test_a_checkpoint_is_never_entirely_in_memory_while_it_is_quantized(bases: Path, tmp_path: Path) -> None:
    """A 16-bit checkpoint can be larger than memory, since its tensors are read and quantized one by one."""
    config = LlamaConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=512
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16()
    stored = sum(each.numel() * 2 for each in model.parameters())
    model.save_pretrained(tmp_path / "large")
    del model
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "large"), str(bases / "llama")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    held = quantized_bytes(load_model(Base(path=str(tmp_path / "large"), weights="nf4"), torch.bfloat16))
    assert held < 0.3 * stored
    # The C library keeps some tens of megabytes of freed memory; benchmarks/quantized_memory.py measures it.
    assert int(done.stdout.splitlines()[-1]) < held + 0.45 * stored, "the checkpoint itself was in memory"


def test_a_quantized_base_has_no_marks_of_transformers_quantizers(bases: Path) -> None:
    model = load_model(Base(path=str(bases / "llama"), weights="int8"), torch.float32)
    for module in (model, model.model):
        assert not module.is_quantized
        assert not hasattr(module, "hf_quantizer")
        assert not hasattr(module.config, "quantization_config")


def test_layers_are_packed_only_in_models_that_the_engine_computes() -> None:
    llama = small_model("llama")
    assert packing().modules(llama) == blocks(llama)
    assert packing().modules(small_model("t5")) == []
    assert packing().modules(small_model("llama", layers=0)) == []
