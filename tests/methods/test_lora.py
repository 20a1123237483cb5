"""LoRA adapters and merged models in PEFT and transformers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunesmith
from tunesmith.errors import UserError
from tunesmith.exporting.export import export
from tunesmith.inference.model_reference import ModelReference
from tunesmith.methods.lora import LoRA
from tunesmith.ops.lora_linear import LinearParts

CPU = torch.device("cpu")


@pytest.fixture
def finished_run(tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path) -> Path:
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows()), "held_out": 0.1},
        "method": {"kind": "lora", "rank": 4},
        "train": {"steps": 5, "tokens_per_step": 256, "learning_rate": 1e-2, "precision": "fp32"},
    }
    return tunesmith.train(recipe, tmp_path / "run").directory


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


def test_peft_loads_the_adapter_and_gives_the_trained_logits(finished_run: Path, tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    base_logits = logits_of(base)
    theirs = logits_of(PeftModel.from_pretrained(base, finished_run / "adapter").eval())
    ours = logits_of(ModelReference.find(str(finished_run)).model(torch.float32, CPU))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (theirs - base_logits).abs().max() > 1e-2, "the adapter changes nothing"


def test_the_merged_model_gives_the_same_logits_in_plain_transformers(finished_run: Path, tmp_path: Path) -> None:
    merged = export(finished_run, tmp_path / "merged", "hf", precision="fp32").path
    model = AutoModelForCausalLM.from_pretrained(merged)
    ours = logits_of(ModelReference.find(str(finished_run)).model(torch.float32, CPU))
    torch.testing.assert_close(logits_of(model), ours, rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(merged).chat_template
    with pytest.raises(UserError, match="already exists"):
        export(finished_run, merged, "hf")


def test_an_unknown_module_is_refused_with_the_known_ones(tiny_model: Path, write_rows: Callable[..., Path]) -> None:
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows())},
        "method": {"kind": "lora", "target_modules": ["q_prj"]},
        "train": {"steps": 1},
    }
    with pytest.raises(UserError, match=r"ends in 'q_prj'.*q_proj"):
        tunesmith.train(recipe)


def test_a_run_with_an_adapter_is_a_base_only_after_merging(
    finished_run: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = {"base": str(finished_run), "data": {"train": str(write_rows())}, "train": {"steps": 1}}
    with pytest.raises(UserError, match=r"is a run with an adapter. Merge it first: tunesmith export"):
        tunesmith.train(recipe, tmp_path / "next")
    merged = export(finished_run, tmp_path / "merged", "hf").path
    assert tunesmith.train({**recipe, "base": str(merged)}, tmp_path / "next").finished


def test_layers_with_the_same_input_are_computed_together(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.modules import fused_lora

    group_sizes: list[int] = []
    original = fused_lora.lora_linears

    def recorded(x: torch.Tensor, layers: list[LinearParts]) -> tuple[torch.Tensor, ...]:
        group_sizes.append(len(layers))
        return original(x, layers)

    monkeypatch.setattr(fused_lora, "lora_linears", recorded)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    peft_model = LoRA(rank=2).apply(model, 0)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    group_sizes.clear()
    ours = logits_of(peft_model)
    layers = model.config.num_hidden_layers
    assert group_sizes == [3, 1, 2, 1] * layers  # queries, keys, values; output; gate, up; down
    for module in peft_model.modules():
        if isinstance(module, fused_lora.FusedLoraLinear):
            module.shared = None
    torch.testing.assert_close(logits_of(peft_model), ours)
