"""A base and an adapter merge to W + alpha / rank · B A, rounded once; adapters are combined as by PEFT.

The references are computed in float64 from the stored files.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bytewise import byte_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from safetensors.torch import load_file, save_file
from small_models import stored_base
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tunesmith.config.head import Head
from tunesmith.errors import UserError
from tunesmith.exporting import weight_files
from tunesmith.exporting.combine import PRUNED, combine
from tunesmith.exporting.export import export
from tunesmith.exporting.huggingface import write_full
from tunesmith.exporting.merging import Merging
from tunesmith.exporting.subject import Subject
from tunesmith.exporting.weights import Weights
from tunesmith.heads.embedding import EmbeddingClassifierHead, EmbeddingHead
from tunesmith.heads.head_file import read_head
from tunesmith.heads.sentence_transformers_format import write_steps
from tunesmith.inference.model_reference import ModelReference

TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
LAYERS = {
    "llama": ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"),
    "gpt2": ("transformer.h.1.attn.c_attn", "transformer.h.0.mlp.c_proj"),
}
SCALE = 1.5


def adapter_at(directory: Path, base: Path, seed: int = 1, **changes: Any) -> Path:
    """A LoRA adapter with random values, saved by PEFT."""
    return random_adapter(directory, AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), seed, **changes)


def random_adapter(directory: Path, model: PreTrainedModel, seed: int, **changes: Any) -> Path:
    family = model.config.model_type
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS[family], "fan_in_fan_out": family == "gpt2"}
    get_peft_model(model, LoraConfig(init_lora_weights=False, **{**settings, **changes})).save_pretrained(directory)
    return directory


def delta(adapter: Path, layer: str) -> Tensor:
    """B A in float64 (out, in)."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{layer}.lora_{part}.weight"].double() for part in "AB")
    return b @ a


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("bases")
    made = {
        f"{family} in {name}": stored_base(directory / f"{family}-{name}", family, dtype)
        for family in TARGETS
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    return made | {"another": stored_base(directory / "another", seed=5)}


# Merging


@pytest.mark.parametrize("name", ["llama in fp32", "llama in bf16", "gpt2 in fp32", "gpt2 in bf16"])
def test_a_merged_weight_is_the_sum_rounded_once_to_the_stored_dtype(
    name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    family, _, precision = name.split()
    adapter = adapter_at(tmp_path / "adapter", bases[name])
    merged = export(adapter, tmp_path / "merged", "hf")
    assert merged.merging == Merging("original", None, ())
    actual = load_file(merged.path / "model.safetensors")
    stored = load_file(bases[name] / "model.safetensors")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert {each.dtype for each in actual.values()} == {dtype}
    for layer in LAYERS[family]:
        added = SCALE * delta(adapter, layer)
        added = added.T if family == "gpt2" else added  # as the family stores it
        expected = stored[f"{layer}.weight"].double() + added
        own = actual[f"{layer}.weight"]
        torch.testing.assert_close(own.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
        if dtype == torch.bfloat16:  # the nearest bf16 value, except where rounding to fp32 first crosses a midpoint
            assert (own == expected.to(dtype)).double().mean() > 0.99
    changed = {key for key in stored if not torch.equal(stored[key], actual[key])}
    assert {key.split(".")[-2] for key in changed} == set(TARGETS[family])
    assert set(actual) == set(stored)
    assert AutoTokenizer.from_pretrained(merged.path).chat_template == byte_tokenizer().chat_template


def test_a_merged_weight_is_in_fp32_until_it_is_written_whatever_the_base(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter = adapter_at(tmp_path / "adapter", bases["llama in bf16"])
    weights = Weights(ModelReference.find(str(adapter)))
    stored = load_file(bases["llama in bf16"] / "model.safetensors")
    for layer in LAYERS["llama"]:
        name = f"{layer}.weight"
        assert weights[name].dtype == torch.float32
        expected = stored[name].double() + SCALE * delta(adapter, layer)
        torch.testing.assert_close(weights[name].double(), expected, rtol=1e-6, atol=1e-7)
    assert set(weights) == set(stored)
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        assert torch.equal(weights[name], stored[name])
    assert {name: weights.shape(name) for name in weights} == {name: tuple(each.shape) for name, each in stored.items()}


def test_reading_a_weight_leaves_the_model_as_it_is(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "adapter", bases["llama in bf16"])
    weights = Weights(ModelReference.find(str(adapter)))
    first = {name: weights[name].clone() for name in weights}
    with weights.computing(merged=False) as model, torch.no_grad():
        model(torch.arange(5)[None])
    assert all(torch.equal(weights[name], first[name]) for name in reversed(list(weights)))
    assert {each.dtype for name, each in model.named_parameters() if "lora" not in name} == {torch.bfloat16}


def test_tied_embeddings_are_stored_apart_if_the_adapter_changes_one_of_them(tmp_path: Path) -> None:
    base = stored_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = adapter_at(tmp_path / "adapter", base, target_modules=["q_proj", "lm_head"])
    merged = export(adapter, tmp_path / "merged", "hf").path
    actual, stored = load_file(merged / "model.safetensors"), load_file(base / "model.safetensors")
    embeddings = stored["model.embed_tokens.weight"]
    assert torch.equal(actual["model.embed_tokens.weight"], embeddings)
    expected = embeddings.double() + SCALE * delta(adapter, "lm_head")
    torch.testing.assert_close(actual["lm_head.weight"].double(), expected, rtol=1e-6, atol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(merged)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_model_is_written_in_several_files_that_transformers_reads(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_files, "FILE_BYTES", 20_000)
    monkeypatch.setattr(weight_files, "FILES", 4)
    adapter = adapter_at(tmp_path / "adapter", bases["gpt2 in bf16"])
    merged = export(adapter, tmp_path / "merged", "hf", precision="fp32").path
    assert len(list(merged.glob("model-*-of-*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(merged)
    weights = Weights(ModelReference.find(str(adapter)))
    for name, values in model.state_dict().items():
        expected = weights[name].T if weights.is_transposed(name) else weights[name]
        assert torch.equal(values, expected.float()), name


def test_trained_embeddings_and_heads_are_merged_too(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "adapter", bases["llama in fp32"], modules_to_save=["lm_head"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(name for name in tensors if "lm_head" in name)
    tensors[key] = torch.randn_like(tensors[key])
    save_file(tensors, file)
    weights = Weights(ModelReference.find(str(adapter)))
    assert torch.equal(weights["lm_head.weight"], tensors[key])
    assert not any("modules_to_save" in name for name in weights)


def test_a_weight_too_large_for_the_precision_is_refused_by_name(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "adapter", bases["llama in fp32"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(each for each in tensors if "1.self_attn.q_proj.lora_B" in each)
    save_file({**tensors, name: tensors[name] * 1e6}, file)
    with pytest.raises(
        UserError, match=r"layers.1.self_attn.q_proj.weight is too large for fp16. Use --precision bf16."
    ):
        export(adapter, tmp_path / "merged", "hf", precision="fp16")
    assert not list(tmp_path.glob("*merged*"))
    assert not list(tmp_path.glob(".merged*"))
    export(adapter, tmp_path / "merged", "hf", precision="bf16")


def test_a_weight_that_is_not_finite_is_refused_by_name(bases: dict[str, Path], tmp_path: Path) -> None:
    """PEFT only checks the adapter's part, but the sum can overflow even if neither part does."""
    base = shutil.copytree(bases["llama in fp32"], tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = float("inf")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model.norm.weight is too large for fp32"):
        export(base, tmp_path / "merged", "hf")
    assert not (tmp_path / "merged").exists()


def test_a_merged_model_with_other_logits_than_the_adapters_is_refused(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_at(tmp_path / "adapter", bases["llama in fp32"])
    monkeypatch.setattr(LoraLinear, "get_delta_weight", lambda self, _: torch.zeros(()))  # as if PEFT did not add it
    with pytest.raises(UserError, match=r"does not give the adapter's logits\. Serve the adapter\."):
        export(adapter, tmp_path / "merged", "hf")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("Not so.\nMore."), "cannot be merged: Not so."),
        (TypeError(), "cannot be merged: TypeError"),
        (NotImplementedError("x"), "PEFT cannot merge this method. Serve the adapter."),
        (AttributeError("x"), "PEFT cannot merge this method. Serve the adapter."),
    ],
)
def test_peft_merge_errors_are_refused_in_one_line(
    error: Exception, message: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    adapter = adapter_at(tmp_path / "adapter", bases["llama in fp32"])
    monkeypatch.setattr(LoraLinear, "merge", fails)
    with pytest.raises(UserError) as refused:
        export(adapter, tmp_path / "merged", "hf")
    assert str(refused.value) == f"{adapter} cannot be merged: {message.removeprefix('cannot be merged: ')}"


def test_merging_to_an_existing_output_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "adapter", bases["llama in fp32"])
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for existing in (tmp_path / "file", tmp_path / "adapter"):
        with pytest.raises(UserError, match="already exists"):
            export(adapter, existing, "hf")
    with pytest.raises(UserError, match=r"file/merged cannot be written: File exists"):
        export(adapter, tmp_path / "file" / "merged", "hf")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused_by_the_weight_and_nothing_is_written(
    value: float, bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter = adapter_at(tmp_path / "adapter", bases["llama in fp32"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(tensor for name, tensor in tensors.items() if "q_proj.lora_B" in name)[0, 0] = value
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"q_proj.*\.weight would contain values that are not finite"):
        export(adapter, tmp_path / "merged", "hf")
    assert not any("merged" in path.name for path in tmp_path.iterdir())


def test_an_interrupted_merge_restarts_and_creates_parent_directories(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "adapter", bases["llama in fp32"])
    partial = tmp_path / "deep" / ".merged.partial"
    partial.mkdir(parents=True)
    (partial / "half.safetensors").write_text("", encoding="utf-8")
    merged = export(adapter, tmp_path / "deep" / "merged", "hf")
    assert not partial.exists()
    assert not (merged.path / "half.safetensors").exists()


def test_a_merged_model_of_vectors_pools_as_its_adapter_did(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "adapter", bases["llama in fp32"], target_modules=["q_proj"])
    head = EmbeddingHead(pooling="last", normalized=False)
    write_steps(adapter, "last", False, 32, 64)
    reference = ModelReference(ModelReference.find(str(adapter)).base, head, adapter, adapter)
    path = tmp_path / "merged"
    write_full(path, Subject(str(adapter), reference), "")
    assert read_head(path) == head
    pooling = json.loads((path / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    assert (pooling["pooling_mode_lasttoken"], pooling["pooling_mode_mean_tokens"]) == (True, False)
    assert json.loads((path / "modules.json").read_text(encoding="utf-8"))[1]["path"] == "1_Pooling"
    assert json.loads((path / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"] == 64


# Combining


@pytest.fixture(scope="module")
def three(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("three")
    adapters = [adapter_at(directory / f"{seed}", bases["llama in fp32"], seed) for seed in (1, 2, 3)]
    byte_tokenizer().save_pretrained(adapters[0])
    return adapters


def by_peft(base: Path, adapters: list[Path], how: str, weights: list[float], **more: float) -> dict[str, Tensor]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapters[0], "0")
    torch.manual_seed(0)
    for index, adapter in enumerate(adapters[1:], 1):
        model.load_adapter(adapter, str(index))
    model.add_weighted_adapter([str(n) for n in range(len(adapters))], weights, "both", combination_type=how, **more)
    return {
        f"{layer}.{part}": getattr(model.get_base_model().get_submodule(layer), part)["both"].weight.detach()
        for layer in LAYERS["llama"]
        for part in ("lora_A", "lora_B")
    }


@pytest.mark.parametrize(
    "how", ["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "ties_svd", "magnitude_prune"]
)
def test_combining_equals_peft_with_the_given_weights_and_density(
    how: Any, three: list[Path], bases: dict[str, Path], tmp_path: Path
) -> None:
    names = [str(each) for each in three[:2]]
    made = combine(names, tmp_path / "both", how, [0.3, 1.4], 0.3)
    assert made == tmp_path / "both"
    more = {"density": 0.3} if how in PRUNED else {}
    expected = by_peft(bases["llama in fp32"], three[:2], how, [0.3, 1.4], **more)
    actual = load_file(made / "adapter_model.safetensors")
    for name, tensor in expected.items():
        own = actual[f"base_model.model.{name}.weight"]
        if "svd" in how:
            own, tensor = own.abs(), tensor.abs()
        torch.testing.assert_close(own, tensor, rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.glob(".both*"))
    assert AutoTokenizer.from_pretrained(made).get_vocab() == byte_tokenizer().get_vocab()


def test_cat_is_the_exact_mean_by_default_and_linear_sums_a_and_b(three: list[Path], tmp_path: Path) -> None:
    names = [str(each) for each in three]
    layer = LAYERS["llama"][0]
    made = combine(names, tmp_path / "mean")
    config = json.loads((made / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    expected = sum(SCALE * delta(each, layer) for each in three) / 3
    torch.testing.assert_close(scale * delta(made, layer), expected, rtol=1e-5, atol=1e-6)
    made = combine(names[:2], tmp_path / "linear", "linear", [0.25, 1.0])
    parts = [load_file(each / "adapter_model.safetensors") for each in (*three[:2], made)]
    for part in "AB":
        first, second, actual = (each[f"base_model.model.{layer}.lora_{part}.weight"].double() for each in parts)
        torch.testing.assert_close(actual, SCALE**0.5 * (0.5 * first + second), rtol=1e-5, atol=1e-6)


def test_dares_drops_are_drawn_from_the_seed(three: list[Path], tmp_path: Path) -> None:
    names = [str(each) for each in three[:2]]
    made = [combine(names, tmp_path / f"{n}", "dare_linear", seed=seed) for n, seed in enumerate((4, 4, 5))]
    files = [(each / "adapter_model.safetensors").read_bytes() for each in made]
    assert files[0] == files[1] != files[2]


def test_adapters_that_cannot_be_combined_are_refused_with_a_reason(
    three: list[Path], bases: dict[str, Path], tmp_path: Path
) -> None:
    names = [str(each) for each in three]
    foreign = str(adapter_at(tmp_path / "foreign", bases["another"]))
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        ([names[0], foreign], {}, f"foreign is an adapter of {bases['another']}, and {names[0]} one of"),
        (names, {"weights": [0.5, 0.5]}, "There are 2 weights for 3 adapters. Give one for each adapter."),
        (names[:1], {}, "two adapters or more"),
        ([names[0], str(bases["another"])], {}, "another has no adapter"),
        (names, {"how": "mean"}, "--how mean does not exist. Use one of linear, cat, svd, ties"),
        (names, {"density": 0.0}, "--density 0 is not in (0, 1]"),
        (names, {"density": 1.01}, "--density 1.01 is not in (0, 1]"),
        (names, {"density": -0.5}, "--density -0.5 is not in (0, 1]"),
    ]
    for inputs, options, message in cases:
        with pytest.raises(UserError, match=re.escape(message)):
            combine(inputs, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
    other = str(adapter_at(tmp_path / "other", bases["llama in fp32"], r=2))
    with pytest.raises(UserError, match="PEFT cannot combine these adapters with linear: "):
        combine([names[0], other], tmp_path / "out", "linear")
    assert combine(names[:2], tmp_path / "combined", "ties", density=1.0).exists()
    with pytest.raises(UserError, match="already exists"):
        combine(names, tmp_path / "combined")
    with pytest.raises(UserError, match="cannot be written"):
        combine(names, tmp_path / "combined" / "adapter_config.json" / "deep")


def embedding_adapter(directory: Path, base: Path, head: Head) -> str:
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    head.save(random_adapter(directory, model, 1), model, 64)
    return str(directory)


def test_combined_embedding_adapters_pool_as_each_did(bases: dict[str, Path], tmp_path: Path) -> None:
    head = EmbeddingHead(pooling="last", normalized=False)
    names = [embedding_adapter(tmp_path / name, bases["llama in fp32"], head) for name in ("first", "second")]
    combined = combine(names, tmp_path / "both")
    assert ModelReference.find(str(combined)).head == head
    assert json.loads((combined / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"] == 64


def test_adapters_with_different_heads_or_a_fitted_classifier_are_not_combined(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["llama in fp32"]
    mean = embedding_adapter(tmp_path / "mean", base, EmbeddingHead())
    last = embedding_adapter(tmp_path / "last", base, EmbeddingHead(pooling="last"))
    text = str(adapter_at(tmp_path / "text", base))
    head = EmbeddingClassifierHead(("no", "yes")).with_classifier(torch.nn.Linear(32, 2))
    fitted = [embedding_adapter(tmp_path / name, base, head) for name in ("one", "two")]
    cases = [
        ([mean, last], "last has another head (embedding) than"),
        ([mean, text], "text has another head (causal_lm) than"),
        (fitted, "one has a classifier that was fitted on its own vectors"),
    ]
    for names, message in cases:
        with pytest.raises(UserError, match=re.escape(message)):
            combine(names, tmp_path / "out")
        assert not (tmp_path / "out").exists()
