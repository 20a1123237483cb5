"""Every field of a recipe's `base` section does what its documentation says: what is read, and from which files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers.dynamic_module_utils
from bytewise import CHATML, byte_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from settings_coverage import shows
from small_models import method_of
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tunesmith.config.base import Base
from tunesmith.config.recipe import Recipe
from tunesmith.engine.trainable import trainable_model
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.head_file import write_head
from tunesmith.heads.stored import stored_head
from tunesmith.heads.token_classification import TokenClassificationHead
from tunesmith.methods.prompt import start_tokens
from tunesmith.models.load import (
    check_base_kind,
    config_of,
    embedded_base,
    fingerprint,
    load_model,
    load_tokenizer,
    locate,
    skeleton,
    stored_weight,
)
from tunesmith.models.precision import dtype_of
from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.ops.quantized import FP4_CODE, NF4_CODE
from tunesmith.planner.fake_model import fake_model
from tunesmith.planner.fake_tensors import fake_tensors

CPU = torch.device("cpu")
NAMES = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


def small_llama(directory: Path, hidden: int, template: str = CHATML, dtype: torch.dtype = torch.float32) -> Path:
    """Save a Llama of one block and a byte tokenizer."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(hidden)
    LlamaForCausalLM(config).to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def stored(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def recipe_for(base: Any, **sections: Any) -> Recipe:
    return Recipe.load({"base": base, "data": {"train": "rows.jsonl"}, "train": {"steps": 1}, **sections})


# path


@shows("base.path")
def test_path_can_be_a_directory_with_weights_and_tokenizer(tiny_model: Path) -> None:
    model = load_model(Base(path=str(tiny_model)), torch.float32)
    weights = stored(tiny_model)
    loaded = {name: value for name, value in model.state_dict().items() if name in weights}
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert not model.training
    assert load_tokenizer(Base(path=str(tiny_model))).get_vocab() == byte_tokenizer().get_vocab()


@shows("base.path")
def test_path_is_the_embedded_base_by_default_and_base_can_be_a_string(tiny_model: Path) -> None:
    assert locate(Base()) == locate(Base(path="embedded")) == str(embedded_base())
    assert (embedded_base() / "model.safetensors").exists()
    assert recipe_for(str(tiny_model)).base == recipe_for({"path": str(tiny_model)}).base
    assert recipe_for(str(tiny_model)).base.path == str(tiny_model)


@shows("base.path")
def test_path_can_be_a_run_with_a_model_but_not_with_an_adapter(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("data: {train: rows.jsonl}\n")
    with pytest.raises(UserError, match=r"is a run that has not finished. Resume it: tunesmith train --resume"):
        locate(Base(path=str(run)))
    (run / "adapter").mkdir()
    with pytest.raises(UserError, match=r"is a run with an adapter. Merge it first: tunesmith export"):
        locate(Base(path=str(run)))
    small_llama(run / "model", 8)
    assert locate(Base(path=str(run))) == str(run / "model")
    assert config_of(Base(path=str(run))).hidden_size == 8


@shows("base.path")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nothing", "does not exist. Give a model directory, a GGUF file, a hub name, or a short name"),
        ("/nothing/here", "does not exist"),
        ("~/nothing", "does not exist"),
        ("a/b/c", "does not exist"),
        (".", "contains no config.json, so it is not a model directory"),
    ],
)
def test_a_path_without_a_model_is_refused(
    path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        locate(Base(path=path))


@shows("base.path", "base.adapter", "base.chat_template")
def test_relative_paths_are_resolved_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    beside = tmp_path / "beside"
    for name in ("model", "adapter"):
        (beside / name).mkdir(parents=True)
    (beside / "own.jinja").write_text("x")
    base = {"path": "model", "adapter": "adapter", "chat_template": "own.jinja"}
    resolved = Recipe.from_values({"base": base, "data": {"train": "rows.jsonl"}}, "recipe", beside).base
    assert (resolved.path, resolved.adapter, resolved.chat_template) == (
        str(beside / "model"),
        beside / "adapter",
        beside / "own.jinja",
    )
    (tmp_path / "embedded").mkdir()
    assert recipe_for("embedded").base.path == "embedded", "never a directory with that name"
    assert recipe_for("./embedded").base.path == str(tmp_path / "embedded")


# revision


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub repository owner/name in the download cache, with branches main and v2."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    for branch, commit, hidden in (("main", "a" * 40, 8), ("v2", "b" * 40, 16)):
        (repository / "refs" / branch).write_text(commit)
        small_llama(repository / "snapshots" / commit, hidden, f"{branch}{CHATML}")
    return repository / "snapshots"


@shows("base.revision")
@pytest.mark.parametrize(
    ("revision", "branch", "commit", "hidden"),
    [(None, "main", "a", 8), ("main", "main", "a", 8), ("v2", "v2", "b", 16), ("b" * 40, "v2", "b", 16)],
)
def test_everything_is_read_from_the_given_branch_or_commit(
    revision: str | None, branch: str, commit: str, hidden: int, hub: Path
) -> None:
    write_head(TokenClassificationHead(("A", "B")), hub / ("b" * 40))
    base = Base(path="owner/name", revision=revision)
    assert load_tokenizer(base).chat_template == f"{branch}{CHATML}"
    assert config_of(base).hidden_size == skeleton(base).config.hidden_size == hidden
    with fake_tensors():
        assert fake_model(base, torch.float32).config.hidden_size == hidden
    model = load_model(base, torch.float32)
    weights = stored(hub / (commit * 40))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(model.get_parameter(name), weights[name])
    assert torch.equal(stored_weight(model, name), weights[name])
    assert fingerprint(base) == {"commit": commit * 40}
    assert stored_head(base) == (TokenClassificationHead(("A", "B")) if branch == "v2" else CausalLMHead())


@shows("base.revision")
def test_weights_in_several_files_are_read_from_the_given_revision(hub: Path) -> None:
    directory = hub / ("b" * 40)
    weights = stored(directory)
    (directory / "model.safetensors").unlink()
    files = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(sorted(weights))}
    for file in sorted(set(files.values())):
        part = {name: weights[name].contiguous() for name in weights if files[name] == file}
        save_file(part, directory / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load_model(Base(path="owner/name", revision="v2"), torch.float32)
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        assert torch.equal(stored_weight(model, name), weights[name])


@shows("base.revision")
def test_an_unknown_revision_gives_a_one_line_error(hub: Path) -> None:
    for read in (load_tokenizer, config_of, lambda base: load_model(base, torch.float32)):
        with pytest.raises(
            UserError, match=r"base: owner/name at v3 is not a directory, .*: HF_HUB_OFFLINE is set\. C"
        ):
            read(Base(path="owner/name", revision="v3"))


# weights


def nearest(weight: Tensor, code: tuple[float, ...]) -> Tensor:
    """Scale each block of 64 by its largest magnitude, and round each number to the nearest point of the code."""
    blocks = weight.double().reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    points = torch.tensor(code, dtype=torch.float64)
    indices = ((blocks / scales)[..., None] - points).abs().argmin(-1)
    return (points[indices] * scales).reshape(weight.shape)


def in_eight_bits(weight: Tensor) -> Tensor:
    """Scale each row by its largest magnitude, and round to n / 127."""
    scales = weight.double().abs().amax(1, keepdim=True)
    return torch.round(weight.double() / scales * 127) / 127 * scales


@shows("base.weights")
@pytest.mark.parametrize("weights", ["int8", "nf4", "fp4"])
def test_quantized_weights_are_the_stored_ones_rounded_to_the_code(weights: Any, tiny_model: Path) -> None:
    model = load_model(Base(path=str(tiny_model), weights=weights, double_quantization=False), torch.float32)
    original = stored(tiny_model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert set(layers) == {
        f"model.layers.{index}.{part}.{name}" for index in (0, 1) for part, names in NAMES.items() for name in names
    }
    for name, layer in layers.items():
        weight = original[f"{name}.weight"]
        expected = (
            in_eight_bits(weight) if weights == "int8" else nearest(weight, NF4_CODE if weights == "nf4" else FP4_CODE)
        )
        torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-5, atol=1e-7)
        assert (layer.weight - weight).abs().max() > 0
    for name, value in model.named_parameters():
        assert torch.equal(value, original[name]), f"{name} is not in a linear layer of a block"
    with fake_tensors():
        fake = fake_model(Base(path=str(tiny_model), weights=weights), torch.float32)
    fake_layers = {name for name, module in fake.named_modules() if isinstance(module, QuantizedLinear)}
    assert fake_layers == set(layers)
    assert {layer.quantized.format for layer in layers.values()} == {weights}


@shows("base.weights")
@pytest.mark.parametrize(
    ("weights", "precision", "dtype"),
    [
        ("fp32", "auto", torch.float32),
        ("bf16", "auto", torch.bfloat16),
        ("bf16", "bf16", torch.bfloat16),
        ("auto", "bf16", torch.bfloat16),
        ("auto", "fp32", torch.float32),
        ("nf4", "bf16", torch.bfloat16),
    ],
)
def test_unquantized_weights_have_the_precision_of_either_section(
    weights: str, precision: str, dtype: torch.dtype, tiny_model: Path
) -> None:
    train = {"steps": 1, "precision": precision}
    recipe = recipe_for({"path": str(tiny_model), "weights": weights}, train=train)
    assert dtype_of(recipe.precision, CPU) == dtype
    model = load_model(recipe.base, dtype_of(recipe.precision, CPU))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    name = "model.embed_tokens.weight"
    assert torch.equal(model.get_parameter(name), stored(tiny_model)[name].to(dtype))


@shows("base.weights")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base": {"weights": "fp32"}, "train": {"precision": "bf16"}}, "would have every layer cast its weights"),
        ({"base": {"weights": "bf16"}, "train": {"precision": "fp32"}}, "would have every layer cast its weights"),
        ({"base": {"weights": "nf4"}, "method": "full"}, "method full moves the base's own matrices"),
        ({"base": {"weights": "int8", "from_scratch": True}}, "base.from_scratch makes random weights"),
        ({"base": {"weights": "fp8"}}, "base.weights: input should be 'auto', 'fp32', 'bf16', 'int8', 'nf4' or 'fp4'"),
    ],
)
def test_weights_that_conflict_with_other_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Recipe.load({"data": {"train": "rows.jsonl"}, **values})
    assert message in str(error.value)
    for weights in ("auto", "fp32", "bf16"):
        recipe = recipe_for({"weights": weights, "from_scratch": True}, method="full")
        assert not recipe.base.quantized


@shows("base.double_quantization")
@pytest.mark.parametrize("weights", ["nf4", "fp4"])
def test_double_quantization_stores_the_scales_in_eight_bits(weights: Any, tiny_model: Path) -> None:
    name = "model.layers.1.mlp.gate_proj"
    original = stored(tiny_model)[f"{name}.weight"]  # (64, 32): 32 blocks
    exact = original.reshape(-1, 64).abs().amax(1)
    for double in (False, True):
        base = Base(path=str(tiny_model), weights=weights, double_quantization=double)
        layer = load_model(base, torch.float32).get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        assert layer.quantized.bytes == 2048 // 2 + (32 + 4 + 4 if double else 32 * 4)
        scales = layer.weight.reshape(-1, 64).abs().amax(1)
        if double:  # its code has 256 points; the largest distance between them is 1 / 64 of the range
            assert 0 < (scales - exact).abs().max() <= (exact - exact.mean()).abs().max() / 64
        else:
            torch.testing.assert_close(scales, exact, rtol=1e-6, atol=0)
        with fake_tensors():
            fake = fake_model(base, torch.float32).get_submodule(name)
        assert fake.quantized.bytes == layer.quantized.bytes
    assert Base().double_quantization, "its default"


# from_scratch


@shows("base.from_scratch")
@pytest.mark.parametrize("seed", [0, 7])
def test_from_scratch_initializes_weights_from_the_seed_and_reads_no_file(
    seed: int, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    base = Base(path=str(tmp_path / "model"), from_scratch=True)
    model = load_model(base, torch.bfloat16, seed)
    torch.manual_seed(seed)
    expected = AutoModelForCausalLM.from_config(config_of(base)).to(torch.bfloat16).state_dict()
    initialized = model.state_dict()
    assert set(initialized) == set(expected)
    assert all(torch.equal(initialized[name], expected[name]) for name in expected)
    assert not model.training
    with pytest.raises(UserError, match="its model could not be loaded"):
        load_model(base.model_copy(update={"from_scratch": False}), torch.bfloat16)
    read = load_model(Base(path=str(tiny_model)), torch.float32, seed).state_dict()
    assert torch.equal(read["lm_head.weight"], stored(tiny_model)["lm_head.weight"])


# adapter


@shows("base.adapter")
def test_the_method_starts_from_the_adapters_weights(tiny_model: Path, tmp_path: Path) -> None:
    lora = {"kind": "lora", "rank": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    before = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in before.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    before.save_pretrained(tmp_path / "adapter")
    expected = {name: parameter for name, parameter in before.named_parameters() if parameter.requires_grad}
    base = {"path": str(tiny_model), "adapter": str(tmp_path / "adapter")}
    model, _ = trainable_model(recipe_for(base, method=lora), torch.float32, CPU)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(trained) == set(expected)
    assert len(trained) == 8
    assert all(torch.equal(trained[name], expected[name]) for name in expected)
    fresh, _ = trainable_model(recipe_for(str(tiny_model), method=lora), torch.float32, CPU)
    assert all(not parameter.any() for name, parameter in fresh.named_parameters() if "lora_B" in name)
    with pytest.raises(UserError, match=r"base.adapter: .* was not made by this method on this base"):
        trainable_model(recipe_for(base, method={**lora, "rank": 5}), torch.float32, CPU)


@shows("base.adapter")
def test_the_fingerprint_of_a_base_includes_its_adapter(tiny_model: Path, tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    with_adapter = fingerprint(Base(path=str(tiny_model), adapter=tmp_path))
    plain = fingerprint(Base(path=str(tiny_model)))
    assert with_adapter == {**plain, "adapter": hashlib.sha256(b"weights").hexdigest()}
    weights = (tiny_model / "model.safetensors").read_bytes()
    assert plain["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert json.loads(plain["config"]) == json.loads((tiny_model / "config.json").read_text())


# chat_template


@shows("base.chat_template")
def test_chat_template_replaces_the_bases_own(tiny_model: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "größer?"}]
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}«{{ m.role }}» {{ m.content }}{% endfor %}", encoding="utf-8")
    own = load_tokenizer(recipe_for({"path": str(tiny_model), "chat_template": str(file)}).base)
    assert own.apply_chat_template(chat, tokenize=False) == "«user» größer?"
    plain = load_tokenizer(recipe_for(str(tiny_model)).base)
    assert plain.apply_chat_template(chat, tokenize=False) == "<|im_start|>user\ngrößer?<|im_end|>"
    with pytest.raises(UserError, match=r"base.chat_template: .*missing.jinja cannot be read: No such file"):
        load_tokenizer(Base(path=str(tiny_model), chat_template=tmp_path / "missing.jinja"))


# trust_remote_code

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "own_llama_of_a_test"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(directory: Path) -> Path:
    """A model whose classes are in a Python file beside it."""
    small_llama(directory, 8)
    (directory / "own_code.py").write_text(CODE)
    for file, changes in (
        (
            "config.json",
            {
                "model_type": "own_llama_of_a_test",
                "architectures": ["OwnForCausalLM"],
                "auto_map": {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnForCausalLM"},
            },
        ),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_code.OwnTokenizer"]}},
        ),
    ):
        values = json.loads((directory / file).read_text())
        (directory / file).write_text(json.dumps({**values, **changes}))
    return directory


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary directory for the code that transformers copies before it runs it."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*__import__("sys").path])


READS: dict[str, Callable[[Base], Any]] = {
    "the config": config_of,
    "the model": lambda base: load_model(base, torch.float32),
    "new weights": lambda base: load_model(base.model_copy(update={"from_scratch": True}), torch.float32),
    "its shape": skeleton,
    "the tokenizer": load_tokenizer,
}


@shows("base.trust_remote_code")
@pytest.mark.parametrize("name", READS)
def test_code_of_a_model_runs_only_if_it_is_trusted(name: str, tmp_path: Path, modules: None) -> None:
    directory = with_code(tmp_path / "model")
    loaded = READS[name](Base(path=str(directory), trust_remote_code=True))
    kind = {"the config": "OwnConfig", "the tokenizer": "OwnTokenizer"}.get(name, "OwnForCausalLM")
    assert kind in {cls.__name__ for cls in type(loaded).__mro__}
    with pytest.raises(UserError, match=r"could not be loaded: .*(custom code|does not recognize)"):
        READS[name](Base(path=str(directory)))


@shows("base.trust_remote_code")
def test_a_trusted_decoder_is_accepted_as_a_decoder(tmp_path: Path, modules: None) -> None:
    directory = with_code(tmp_path / "model")
    recipe = recipe_for({"path": str(directory), "trust_remote_code": True})
    check_base_kind(recipe.base, recipe.objective)
    with fake_tensors():
        fake = fake_model(recipe.base, torch.float32)
    assert type(fake).__name__ == "OwnForCausalLM"
    with pytest.raises(UserError, match="could not be loaded"), fake_tensors():
        fake_model(Base(path=str(directory)), torch.float32)


@shows("base.trust_remote_code")
def test_the_fingerprint_of_a_trusted_hub_model_is_its_commit(hub: Path, modules: None) -> None:
    with_code(hub / ("a" * 40))
    assert fingerprint(Base(path="owner/name", trust_remote_code=True)) == {"commit": "a" * 40}


@shows("base.trust_remote_code", "base.revision")
@pytest.mark.parametrize("kind", ["prompt", "ptuning", "prefix"])
@pytest.mark.usefixtures("modules")
def test_a_prompts_text_is_read_with_the_tokenizer_of_the_recipes_base(kind: str, hub: Path, tmp_path: Path) -> None:
    with_own_code = Base(path=str(with_code(tmp_path / "own")), trust_remote_code=True)
    shutil.rmtree(hub / ("a" * 40))  # the newest commit, which nothing may read
    for base in (with_own_code, Base(path="owner/name", revision="v2")):
        model = load_model(base, torch.float32)
        prompted = method_of(kind, tokens=3, start="abc").apply(model, seed=0)
        assert prompted.peft_config["default"].num_virtual_tokens == 3
        with fake_tensors():
            fake = fake_model(base, torch.float32)
            assert start_tokens(fake, 3, "abc").shape == (3,)
