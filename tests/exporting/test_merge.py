"""Merging measures its quality; combining adds adapters; adapters of other tools are supported."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tunesmith
from tunesmith.errors import UserError
from tunesmith.exporting.combine import combine
from tunesmith.exporting.export import export
from tunesmith.inference.model_reference import ModelReference

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train with the given changes, once for each."""
    directory = tmp_path_factory.mktemp("made")
    rows = directory / "rows.jsonl"
    examples = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}, of course."} for n in range(60)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")

    @cache
    def trained(weights: str = "fp32", seed: int = 0, learning_rate: float = 1e-2) -> Path:
        settings = {"steps": 6, "tokens_per_step": 512, "precision": "fp32"}
        recipe = {
            "base": {"path": str(tiny_model), "weights": weights},
            "data": {"train": str(rows), "held_out": 0.2},
            "method": {"kind": "lora", "rank": 4},
            "train": {**settings, "seed": seed, "learning_rate": learning_rate},
        }
        return tunesmith.train(recipe, directory / f"{weights}-{seed}-{learning_rate}").directory

    return trained


@pytest.fixture
def run(made: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of such a run, which a test may change."""

    def copied(name: str, **changes: Any) -> Path:
        return Path(shutil.copytree(made(**changes), tmp_path / name))

    return copied


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 40)[None]).logits


def test_merge_after_nf4_measures_both_ways_and_writes_the_better_one(run: Callable[..., Path], tmp_path: Path) -> None:
    directory = run("quantized", weights="nf4")
    merged = export(directory, tmp_path / "merged", "hf", precision="fp32")
    report = json.loads((tmp_path / "merged" / "merge.json").read_text())
    ways = {way["into"]: way for way in report["ways"]}
    assert set(ways) == {"original", "dequantized"}
    assert ways[report["into"]]["loss"] == min(way["loss"] for way in ways.values())
    assert ways["dequantized"]["divergence"] < 1e-6 < ways["original"]["divergence"], (
        "it was trained on the quantized weights"
    )
    trained = logits_of(ModelReference.find(str(directory)).model(torch.float32, CPU))
    logits = logits_of(AutoModelForCausalLM.from_pretrained(merged.path))
    exact = torch.allclose(logits, trained, atol=1e-4)
    assert exact == (merged.merging.into == "dequantized")


def test_non_finite_weight_is_never_written(run: Callable[..., Path], tmp_path: Path) -> None:
    directory = run("run")
    file = directory / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, file)
    with pytest.raises(UserError, match=r"cannot be merged"):
        export(directory, tmp_path / "merged", "hf")
    assert not (tmp_path / "merged").exists()


def test_prefix_cannot_be_merged(tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path) -> None:
    recipe = {"data": {"train": str(write_rows())}, "method": "prefix", "train": {"steps": 1}}
    other = tunesmith.train({**recipe, "base": str(tiny_model)}, tmp_path / "other").directory
    with pytest.raises(UserError, match="not part of any weight"):
        export(other, tmp_path / "merged", "hf")


def test_adapters_combined_by_cat_add_up_exactly_and_load_in_peft(
    run: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    first, second = run("first"), run("second", seed=1, learning_rate=2e-2)
    combined = combine([str(first), str(second)], tmp_path / "both", "cat", [0.3, 0.7])
    weight = "model.layers.0.mlp.up_proj.weight"
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).state_dict()[weight]

    def delta(adapter: Path) -> torch.Tensor:
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), adapter
        )
        return model.merge_and_unload().state_dict()[weight] - base

    expected = 0.3 * delta(first / "adapter") + 0.7 * delta(second / "adapter")
    torch.testing.assert_close(delta(combined), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["linear", "svd", "ties", "dare_linear", "dare_ties"])
def test_every_combination_method_writes_an_adapter_that_loads(
    how: Any, run: Callable[..., Path], tmp_path: Path
) -> None:
    first, second = run("first"), run("second", seed=1)
    combined = combine([str(first), str(second)], tmp_path / how, how)
    assert torch.isfinite(logits_of(ModelReference.find(str(combined)).model(torch.float32, CPU))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["embedded"]}, "two adapters or more"),
        ({"names": ["embedded", "embedded"]}, "has no adapter"),
        ({"names": ["embedded", "embedded"], "how": "average"}, "does not exist"),
    ],
)
def test_invalid_combination_is_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        combine(output=tmp_path / "out", **arguments)


OTHERS: dict[str, dict[str, Any]] = {
    "PEFT": {"target_modules": ["q_proj", "v_proj"]},
    "Axolotl, with embeddings": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "LLaMA-Factory": {"target_modules": "all-linear", "lora_dropout": 0.05, "use_rslora": True},
    "Unsloth": {
        "target_modules": r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj))"
    },
}
"""Configurations as these tools write them; all save through PEFT."""


@pytest.mark.parametrize("tool", OTHERS)
def test_adapters_of_other_tools_load_and_merge(tool: str, tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    theirs = get_peft_model(
        model, LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **OTHERS[tool])
    ).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    # A field of another PEFT version, and one that Unsloth adds.
    config.write_text(json.dumps({**json.loads(config.read_text()), "unsloth_fixed": True, "auto_mapping": None}))
    ours = ModelReference.find(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits_of(ours.model(torch.float32, CPU)), logits_of(theirs), rtol=1e-4, atol=1e-4)
    merged = export(tmp_path / "adapter", tmp_path / "merged", "hf", precision="fp32")
    full = AutoModelForCausalLM.from_pretrained(merged.path)
    torch.testing.assert_close(logits_of(full), logits_of(theirs), rtol=1e-3, atol=1e-3)


def test_pickled_adapter_is_refused(run: Callable[..., Path], tmp_path: Path) -> None:
    directory = run("run")
    file = directory / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), directory / "adapter" / "adapter_model.bin")
    file.unlink()
    with pytest.raises(UserError, match=r"pickle"):
        ModelReference.find(str(directory)).model(torch.float32, CPU)
