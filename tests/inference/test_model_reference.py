"""Model references are resolved and loaded as trained, and predictions equal the model's own forward."""

import json
from pathlib import Path

import pytest
import torch
from bytewise import byte_tokenizer
from families import config_of
from matrix import make_bases
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_models import stored_base
from transformers import AutoModelForCausalLM

from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.inference.generate import Generator
from tunesmith.inference.model_reference import ModelReference, fingerprint_of
from tunesmith.inference.sampling import Sampling
from tunesmith.modules.packed_linear import PackedLinear
from tunesmith.ops import native

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`; `adapter`, saved by PEFT; `run`, which contains the adapter; `full`, a run that trained all weights."""
    directory = tmp_path_factory.mktemp("models")
    for name in ("base", "full/model"):
        stored_base(directory / name, dtype=torch.bfloat16)
    tokenizer = byte_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(directory / "base")
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    for name in ("adapter", "run/adapter"):
        peft_model.save_pretrained(directory / name)
        config = directory / name / "adapter_config.json"
        values = {
            **json.loads(config.read_text()),
            "base_model_name_or_path": str(directory / "base"),
            "revision": "v2",
        }
        config.write_text(json.dumps(values), encoding="utf-8")
    tokenizer.chat_template = "other {{ messages[0]['content'] }}"
    tokenizer.save_pretrained(directory / "run" / "adapter")
    for name in ("run", "full", "unfinished"):
        (directory / name).mkdir(exist_ok=True)
        recipe = {"base": {"path": str(directory / "base"), "weights": "int8"}, "data": {"train": "rows.jsonl"}}
        (directory / name / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return directory


def test_a_run_an_adapter_and_a_model_are_found_by_their_directories(models: Path) -> None:
    base, adapter, run, full = (ModelReference.find(str(models / name)) for name in ("base", "adapter", "run", "full"))
    assert (base.base.path, base.adapter, base.directory, base.head) == (
        str(models / "base"),
        None,
        models / "base",
        CausalLMHead(),
    )
    assert (adapter.base.path, adapter.base.revision) == (str(models / "base"), "v2")
    assert (adapter.adapter, adapter.directory) == (models / "adapter", models / "adapter")
    assert (run.base.path, run.base.weights) == (str(models / "base"), "int8")
    assert (run.adapter, run.directory) == (models / "run" / "adapter", models / "run" / "adapter")
    assert (full.base.path, full.adapter, full.directory) == (
        str(models / "full" / "model"),
        None,
        models / "full" / "model",
    )
    stored = run.with_weights("auto")
    assert (stored.base.weights, stored.base.path, stored.adapter) == (
        "auto",
        run.base.path,
        run.adapter,
    )
    assert base.classifier() is adapter.classifier() is None
    with pytest.raises(UserError, match="unfinished is a run that has not finished"):
        ModelReference.find(str(models / "unfinished"))


def test_an_adapters_tokenizer_takes_precedence_over_the_bases(models: Path) -> None:
    templates = {
        name: ModelReference.find(str(models / name)).tokenizer().chat_template for name in ("base", "adapter", "run")
    }
    assert templates["run"].startswith("other ")
    assert templates["base"] == templates["adapter"] == byte_tokenizer().chat_template


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_and_adapter_are_loaded_in_the_dtype_and_in_evaluation_mode(dtype: torch.dtype, models: Path) -> None:
    model = ModelReference.find(str(models / "adapter")).model(dtype, CPU)
    assert {each.dtype for each in model.parameters()} == {dtype}
    assert not model.training
    tensors = load_file(models / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B"
    own = dict(model.named_parameters())[f"{name}.default.weight"]
    assert torch.equal(own, tensors[f"{name}.weight"].to(dtype))
    quantized = ModelReference.find(str(models / "run")).model(dtype, CPU)
    assert any(type(each).__name__ == "QuantizedLinear" for each in quantized.modules())
    assert not any(type(each).__name__ == "QuantizedLinear" for each in model.modules())


def test_an_adapter_of_another_shape_is_refused_with_its_base(models: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    AutoModelForCausalLM.from_config(config_of("llama", len(tokenizer), hidden_size=16)).save_pretrained(tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "b")
    reference = ModelReference.find(str(models / "adapter"))
    other = ModelReference(
        reference.base.model_copy(update={"path": str(tmp_path / "b"), "revision": None}),
        reference.head,
        reference.adapter,
    )
    with pytest.raises(UserError, match=r"adapter does not fit on .*b: Error\(s\) in loading state_dict"):
        other.model(torch.float32, CPU)


def test_an_adapters_fingerprint_differs_from_its_bases(models: Path) -> None:
    base, adapter, run = (fingerprint_of(str(models / name)) for name in ("base", "adapter", "run"))
    assert "adapter" not in base
    assert {name: mark for name, mark in adapter.items() if name != "adapter"} == base
    assert adapter["adapter"] == run["adapter"]


def packed_layers(model: torch.nn.Module) -> int:
    return sum(isinstance(module, PackedLinear) for module in model.modules())


@pytest.mark.skipif(native.library() is None, reason="layers are packed for the kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "layers"), [("llama", 14), ("gpt2", 8)])
def test_layers_packed_while_they_are_read_answer_to_the_same_bits(
    family: str, layers: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    make_bases(tmp_path, [family])
    reference = ModelReference.find(str(tmp_path / family))
    served, plain = reference.served_model(dtype, CPU), reference.model(dtype, CPU)
    assert (packed_layers(served), packed_layers(plain)) == (layers, 0)
    inner = next(layer for layer in served.modules() if isinstance(layer, PackedLinear))
    rows = torch.randn(2, 3, inner.in_features, dtype=dtype)
    expected = torch.nn.functional.linear(rows, inner.weight, inner.bias)
    torch.testing.assert_close(inner(rows), expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    generators = [Generator(model, reference.tokenizer()) for model in (served, plain)]
    first, second = (each.continuations(["Hello", "a b c d"], Sampling(max_new_tokens=8)) for each in generators)
    assert all(each.is_paged for each in generators)
    assert first == second


@pytest.mark.parametrize("family", ["t5", "granitemoehybrid"])
def test_a_family_that_is_not_paged_keeps_its_linear_layers(family: str, tmp_path: Path) -> None:
    make_bases(tmp_path, [family])
    assert packed_layers(ModelReference.find(str(tmp_path / family)).served_model(torch.float32, CPU)) == 0
