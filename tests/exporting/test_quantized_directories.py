"""transformers loads the exported directories, whose weights are ours within their own rounding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import stored_base
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

import tunesmith
from tunesmith.errors import UserError
from tunesmith.exporting.export import export
from tunesmith.ops.quantized import dequantize_reference, quantize

SIZES = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "gpt2": {"n_embd": 64, "n_inner": 128},
}
"""bitsandbytes' kernel for CPUs takes rows of a multiple of 64 numbers."""


def dequantized(base: Path, bits: Any) -> Any:
    """The base with the weights of its blocks rounded to these bits, by the definition."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for layer in model.modules():
        is_transposed = type(layer).__name__ == "Conv1D"
        if (is_transposed or isinstance(layer, torch.nn.Linear)) and layer is not model.get_output_embeddings():
            weight = layer.weight.data.T if is_transposed else layer.weight.data
            exact = dequantize_reference(quantize(weight.contiguous(), bits, True), torch.float32)
            layer.weight.data = exact.T if is_transposed else exact
    return model


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_transformers_computes_with_the_exported_bits(bits: str, family: str, tmp_path: Path) -> None:
    base = stored_base(tmp_path / "base", family, torch.bfloat16, initializer_range=0.2, **SIZES[family])
    done = export(base, tmp_path / bits, bits)
    model = AutoModelForCausalLM.from_pretrained(done.path)
    kinds = {type(layer).__name__ for layer in model.modules()}
    assert {"int8": "Linear8bitLt", "nf4": "Linear4bit"}[bits] in kinds
    assert "Conv1D" not in kinds
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        expected, found = dequantized(base, bits)(ids).logits, model(ids).logits.float()
    limit = {"int8": 0.06, "nf4": 0.02}[bits]  # in int8, the inputs are rounded too
    assert (found - expected).abs().mean() < limit * expected.abs().mean()


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_the_settings_are_those_that_transformers_writes(bits: str, tmp_path: Path) -> None:
    base = stored_base(tmp_path / "base", "llama", torch.bfloat16, **SIZES["llama"])
    export(base, tmp_path / bits, bits)
    asked = (
        BitsAndBytesConfig(load_in_8bit=True)
        if bits == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    )
    AutoModelForCausalLM.from_pretrained(base, quantization_config=asked, dtype=torch.bfloat16).save_pretrained(
        tmp_path / "theirs"
    )
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in (bits, "theirs"))
    settings = {"llm_int8_skip_modules", "bnb_4bit_compute_dtype"}
    for name in set(theirs["quantization_config"]) - settings:
        assert ours["quantization_config"][name] == theirs["quantization_config"][name], name
    assert ours["quantization_config"]["llm_int8_skip_modules"] == ["lm_head"]
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in (bits, "theirs"))
    assert {name: (values.dtype, values.shape) for name, values in ours.items() if "quant_state" not in name} == {
        name: (values.dtype, values.shape) for name, values in theirs.items() if "quant_state" not in name
    }


def test_tunesmith_generates_from_an_exported_directory(tmp_path: Path) -> None:
    base = stored_base(tmp_path / "base", "llama", torch.bfloat16, initializer_range=0.2, **SIZES["llama"])
    texts = {
        to: str(tunesmith.load(export(base, tmp_path / to, to).path).generate(["Why?"], max_new_tokens=2)[0])
        for to in ("hf", "nf4")
    }
    assert texts["hf"] == str(tunesmith.load(base).generate(["Why?"], max_new_tokens=2)[0])
    assert texts["nf4"]


def test_a_directory_has_the_template_all_ends_and_a_card(tmp_path: Path) -> None:
    base = stored_base(tmp_path / "base", "llama", torch.bfloat16)
    done = export(base, tmp_path / "model", "hf")
    tokenizer = AutoTokenizer.from_pretrained(done.path)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template
    ends = GenerationConfig.from_pretrained(done.path).eos_token_id
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]
    assert "# base" in done.card.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="model already exists"):
        export(base, tmp_path / "model", "hf")
