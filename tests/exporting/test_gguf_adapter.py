"""A LoRA adapter as a GGUF file: llama.cpp adds to the base what PEFT adds."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from exportable import FAMILIES, saved
from llama_cpp import LlamaCpp
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tunesmith.errors import UserError
from tunesmith.exporting.export import export

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]}),
    "ranks and alphas by layer": (
        "llama",
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 5, "q_proj": 3}},
    ),
    "rslora": ("granite", {"target_modules": ["q_proj", "o_proj"], "use_rslora": True}),
    "qwen3": ("qwen3", {"target_modules": "all-linear"}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
}


def adapter_of(base: Path, directory: Path, **settings: Any) -> Any:
    """An adapter with random weights. Returns PEFT's model."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn_like(weight))
    model.save_pretrained(directory)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_adds_what_peft_adds(case: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    plain = saved(tmp_path / "base", *FAMILIES[family])
    model = adapter_of(tmp_path / "base", tmp_path / "adapter", **settings)
    base = export(tmp_path / "base", tmp_path / "base.gguf", "gguf:f32").path
    done = export(tmp_path / "adapter", tmp_path / "adapter.gguf", "gguf", adapter_only=True)
    assert done.to == "gguf:f32"
    ids = torch.arange(20, 60, 2)
    with torch.no_grad():
        expected, without = (torch.log_softmax(each(ids[None]).logits[0, -1], -1) for each in (model, plain))
    found = LlamaCpp(base, done.path).log_probabilities(ids.tolist())
    assert max(abs(expected[id].item() - value) for id, value in found.items()) < 0.02
    assert (expected - without).abs().max() > 0.5


def test_the_adapter_states_what_it_is(tmp_path: Path) -> None:
    saved(tmp_path / "base", *FAMILIES["llama"])
    adapter_of(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"])
    done = export(tmp_path / "adapter", tmp_path / "a.gguf", "gguf:f16", adapter_only=True)
    file = gguf.GGUFReader(done.path)
    values = {name: file.fields[name].contents() for name in ("general.type", "adapter.type", "adapter.lora.alpha")}
    assert values == {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    assert {tensor.name: tensor.tensor_type.name for tensor in file.tensors} == {
        f"blk.{block}.attn_q.weight.lora_{side}": "F16" for block in range(3) for side in "ab"
    }
    assert "the adapter alone" in done.card.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "it is DoRA"),
        ({"bias": "all"}, "it trains biases"),
        ({"modules_to_save": ["lm_head"]}, "it trains complete modules too"),
        ({"init_lora_weights": "pissa"}, "its initialization changed the base"),
    ],
)
def test_other_adapters_are_refused(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    saved(tmp_path / "base", *FAMILIES["llama"])
    adapter_of(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"], **settings)
    with pytest.raises(UserError, match=f"cannot become a GGUF adapter: {reason}. Leave out --adapter-only"):
        export(tmp_path / "adapter", tmp_path / "a.gguf", "gguf", adapter_only=True)
    assert not list(tmp_path.glob("*.gguf"))


def test_a_model_without_an_adapter_and_quantized_factors_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "base", *FAMILIES["llama"])
    with pytest.raises(UserError, match=r"has no adapter. Leave out --adapter-only"):
        export(tmp_path / "base", tmp_path / "a.gguf", "gguf", adapter_only=True)
    with pytest.raises(UserError, match=r"gguf:q8_0 is not for adapters. Use gguf:f16"):
        export(tmp_path / "base", tmp_path / "a.gguf", "gguf:q8_0", adapter_only=True)
