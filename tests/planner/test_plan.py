"""Plans of known models agree with arithmetic and the literature; proposals fit."""

import json
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith.config.base import Base
from tunesmith.errors import UserError
from tunesmith.models.bases import known_bases
from tunesmith.planner.after_training import key_value_bytes, merging_memory, serving_memory
from tunesmith.planner.device import device_named, known_devices
from tunesmith.planner.request import best_that_fits, on_devices, recipe_of
from tunesmith.planner.shapes import HERE, with_known_config

PUBLISHED = {
    "gpt2": 124_439_808, "gpt2-xl": 1_557_611_200, "llama-2-7b": 6_738_415_616, "llama-65b": 65_285_660_672,
    "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496, "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096, "mixtral-8x7b": 46_702_792_704, "phi-4": 14_659_507_200,
    "qwen2.5-7b": 7_615_616_512, "qwen3-8b": 8_190_735_360, "gemma-3-270m": 268_098_176,
    "smollm2-135m": 134_515_008,
}  # fmt: skip
"""Parameter counts from the model cards on the hub (safetensors)."""


@pytest.mark.parametrize(
    "name",
    ["smollm2-135m", *(pytest.param(name, marks=pytest.mark.long) for name in PUBLISHED if name[:6] != "smollm")],
)
def test_a_shipped_config_has_as_many_parameters_as_its_model(name: str) -> None:
    plan = tunesmith.plan(name, device="h100")
    assert plan.step.parameters == pytest.approx(PUBLISHED[name], rel=0.002)


def test_a_shipped_config_is_found_by_its_hub_name_and_a_directory_has_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, known in known_bases().items():
        for alias in (name, *known.hub) if known.hub else ():
            is_here = alias == name and known.located() is not None  # a package that carries it is installed
            assert with_known_config(Base(path=alias)).path == (alias if is_here else str(HERE / known.shape))
    monkeypatch.chdir(tmp_path)
    Path("gpt2").mkdir()
    assert with_known_config(Base(path="gpt2")).path == "gpt2"


@pytest.mark.long
def test_mistral_serves_and_trains_in_the_memory_that_users_report() -> None:
    full = tunesmith.plan("mistral-7b", overrides=["method=full"], device="h100")
    serving = sum(serving_memory(full, context=1024, concurrency=1, page=None).values())
    assert 14e9 < serving < 17e9  # "about 14 GB" of weights in bf16
    assert full.memory.peak_bytes > 90e9
    assert not full.fits
    qlora = tunesmith.plan("mistral-7b", overrides=["base.weights=nf4"], device="rtx-4060-ti")
    assert qlora.fits
    assert qlora.memory.peak_bytes < 16e9


def test_65_billion_parameters_are_tuned_on_48_gigabytes() -> None:
    """Dettmers et al. 2023, abstract."""
    settings = [
        "base.weights=nf4",
        "train.gradient_checkpointing=true",
        "data.max_length=512",
        "train.tokens_per_batch=512",
    ]
    plan = tunesmith.plan("llama-65b", overrides=settings, device="l40s")
    assert plan.fits


def test_the_key_value_cache_follows_its_formula() -> None:
    plan = tunesmith.plan("llama-3-8b", device="h100")
    one_answer, sixteen = (serving_memory(plan, 8192, count, None)["key–value cache"] for count in (1, 16))
    assert one_answer == 2 * 32 * 8 * 128 * 8192 * 2
    assert sixteen == 16 * one_answer
    from transformers import AutoConfig

    gemma = AutoConfig.from_pretrained(HERE / "gemma-3-1b")
    full = sum(kind == "full_attention" for kind in gemma.layer_types)
    expected = 2 * 1 * 256 * 2 * (full * 8192 + (26 - full) * 512)
    assert key_value_bytes(gemma, 8192, 2) == expected  # a sliding-window layer keeps its window


def test_merging_needs_fp32_weights_on_the_host_and_a_mergeable_adapter() -> None:
    merging = merging_memory(tunesmith.plan("mistral-7b", overrides=["base.weights=nf4"], device="l4"))
    assert merging is not None
    assert merging["weights"] == 4 * PUBLISHED["mistral-7b"]
    assert merging["stored weights"] == 2 * PUBLISHED["mistral-7b"]  # in bf16 on the hub
    assert merging["adapters"] == 4 * 41_943_040
    for method in ("full", "prefix"):
        assert merging_memory(tunesmith.plan("embedded", overrides=[f"method={method}"], device="l4")) is None


@pytest.mark.long
def test_a_larger_batch_and_a_larger_model_need_more_memory() -> None:
    def peak(base: str = "smollm2-135m", *settings: str) -> int:
        return tunesmith.plan(base, overrides=settings, device="l4").memory.peak_bytes

    assert peak() < peak("smollm2-135m", "train.tokens_per_step=8192", "train.tokens_per_batch=8192")
    assert peak() < peak("smollm2-360m")
    assert peak("smollm2-135m", "train.gradient_checkpointing=true") < peak()


@pytest.mark.long
def test_a_proposal_fits_and_lists_what_it_gives_up() -> None:
    recipe = recipe_of("llama-3-8b", None, None, ["method=full"])
    proposal = best_that_fits(recipe, device_named("rtx-4060-ti"), 16_000_000_000)
    assert proposal.plan.memory.peak_bytes <= 16e9
    assert "method=lora" in proposal.overrides
    assert any("LoRA instead of" in difference for difference in proposal.tradeoffs)
    overrides = [override for override in proposal.overrides if "memory_limit" not in override]
    planned = tunesmith.plan("llama-3-8b", overrides=overrides, device="rtx-4060-ti")
    assert planned.step.trained == proposal.plan.step.trained
    small = recipe_of("smollm2-135m", None, None, ["method=lora"])
    with pytest.raises(UserError, match=r"No recipe for .* fits into"):
        best_that_fits(small, device_named("rtx-3060"), 700_000_000)


def test_devices_differ_by_memory_and_speed() -> None:
    rows = {row.device.name: row for row in on_devices(recipe_of("llama-3-8b", None, None, ["method=full"]))}
    assert set(rows) == set(known_devices())
    assert rows["rtx-4090"].cards > 1
    assert rows["h200"].cards == 2  # 158 GB on cards of 150
    assert rows["mi300x"].cards == 1
    assert rows["h100"].plan.time.tokens_per_second > rows["a100-80gb"].plan.time.tokens_per_second


@pytest.mark.long
def test_the_total_time_is_known_only_with_rows(tiny_model: Path, write_rows: Any) -> None:
    recipe = {"base": str(tiny_model), "data": {"train": str(write_rows(200))}, "train": {"epochs": 2}}
    plan = tunesmith.plan(recipe=recipe)
    time = plan.time
    assert time.total_seconds is not None
    steps = plan.batch_plan.layout(plan.step.packed).steps
    assert time.parts["training"] == pytest.approx(steps * time.seconds_per_step)
    assert tunesmith.plan(str(tiny_model)).time.total_seconds is None


def test_without_the_tokenizer_row_lengths_come_from_characters(write_rows: Any) -> None:
    plan = tunesmith.plan("llama-3-8b", data=str(write_rows(100)), device="h100")
    assert 5 <= plan.batch_plan.longest <= 40
    assert len(plan.batch_plan.table) > 80


def test_a_plans_json_has_the_documented_fields(tiny_model: Path) -> None:
    fields = json.loads(json.dumps(tunesmith.plan(str(tiny_model)).to_dict()))
    assert fields["memory"]["peak_bytes"] == sum(fields["memory"]["parts"].values())
    assert set(fields["time"]) == {"seconds_per_step", "tokens_per_second", "total_seconds", "parts"}
    assert fields["fits"] is True
    assert fields["device"] == "this CPU"


def test_an_unknown_device_is_refused_and_the_known_ones_are_listed(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"--device: gtx-970 is not known. Known: here, rtx-3060"):
        tunesmith.plan(str(tiny_model), device="gtx-970")
