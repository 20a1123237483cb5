"""Memory in each phase of a run, during merging, and during serving: computed by hand from made-up figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import CPU_ELSEWHERE, CPU_HERE, GPU, a_batch_plan, a_plan, a_recipe, a_step, addition, product, shape
from transformers import GPT2Config, LlamaConfig, MistralConfig

from tunesmith.config.recipe import Recipe
from tunesmith.models.load import stored_dtype
from tunesmith.ops.quantized import PIECE
from tunesmith.planner import device as device_module
from tunesmith.planner import plan as plan_module
from tunesmith.planner.after_training import COMPARING, key_value_bytes, merging_memory, serving_memory
from tunesmith.planner.allocators import reserved, resident
from tunesmith.planner.device import Device, device_named, known_devices, program_bytes, this_device
from tunesmith.planner.loading import mapped_bytes, stored_bytes, while_loading
from tunesmith.planner.plan import FIRST_USE, Memory, plan_of, plan_run
from tunesmith.planner.request import cards_needed
from tunesmith.planner.shapes import HERE
from tunesmith.planner.step import Rows, Step
from tunesmith.planner.trace import Operation

BF16, FP32 = torch.bfloat16, torch.float32


# --- training, evaluating, loading -----------------------------------------------------------------------------------


def test_each_phase_adds_the_program_to_its_parts_and_the_largest_is_the_peak() -> None:
    plan = plan_of(a_step(), a_batch_plan(), BF16, GPU, None, 2)
    assert plan.memory.peaks == {
        "loading": 700_000 + 5_000,
        "evaluating": 700_000 + 5_000 + 70 + 61 + 29,
        "training": 700_000 + 5_000 + 70 + 900 + 33 + 41 + 17,
    }
    assert plan.memory.parts == {
        "program": 700_000, "weights": 5_000, "adapters": 70, "activations": 933, "loss workspace": 41,
        "allocator slack": 17,
    }  # fmt: skip
    assert plan.memory.peak_bytes == 706_061
    assert (plan.checkpointed, plan.device, plan.dtype) == (2, GPU, BF16)


def test_a_plan_shows_the_parts_of_the_phase_with_the_highest_peak() -> None:
    evaluated = a_step(evaluation_parts={"weights": 5_000, "loss": 9_000}, parts={"weights": 5_000, "loss": 41})
    plan = plan_of(evaluated, a_batch_plan(), BF16, GPU, None, 0)
    assert plan.memory.parts == {"program": 700_000, "weights": 5_000, "loss workspace": 9_000}
    quantized = a_batch_plan(a_recipe({"path": "embedded", "weights": "nf4"}))
    plan = plan_of(a_step(), quantized, BF16, CPU_ELSEWHERE, None, 0)
    assert plan.memory.parts["quantizing"] == 20 * 1_200
    assert plan.memory.parts["program"] == 700_000
    assert plan.memory.peak_bytes == plan.memory.peaks["loading"] > plan.memory.peaks["training"]


def test_trained_weights_count_as_weights() -> None:
    step = a_step(parts={"weights": 400, "trained weights": 4_600, "gradients": 800}, slack=0)
    plan = plan_of(step, a_batch_plan(), BF16, GPU, None, 0)
    assert plan.memory.parts["weights"] == 5_000
    assert "trained weights" not in plan.memory.parts
    assert plan.memory.peaks["loading"] == 705_000


def test_a_plan_fits_into_the_available_memory_or_else_the_devices() -> None:
    needed = 706_061
    for available, fits in ((needed, True), (needed - 1, False), (None, True)):
        plan = plan_of(a_step(), a_batch_plan(), BF16, GPU, available, 0)
        assert plan.fits is fits
    assert plan.available == GPU.memory_bytes
    small = replace(GPU, memory_bytes=needed - 1)
    assert not plan_of(a_step(), a_batch_plan(), BF16, small, None, 0).fits


def test_this_cpu_adds_first_use_and_kernel_code_per_shape_and_width() -> None:
    step = a_step()  # two 16-bit products, one of them in both forward–backward and evaluation
    recipe = a_recipe(train={"epochs": 2, "tokens_per_step": 200, "shuffle": False})
    batch_plan = a_batch_plan(recipe)  # 160, 90, 200 and 50 tokens: one or two times 128
    assert batch_plan.layout(True).widths == {1, 2}
    plan = plan_of(step, batch_plan, BF16, CPU_HERE, None, 0)
    loading = sum(while_loading(recipe.base, step, BF16, CPU_HERE).values())
    program = plan.memory.peaks["loading"] - loading
    heap = 30 * 2**20 if CPU_HERE.simulate_allocator is resident else 0
    assert program == pytest.approx(program_bytes(), rel=0.2)
    assert plan.memory.peaks["evaluating"] - 5_160 - program == 30 * 2**20 + 4_400_000 + heap
    assert plan.memory.peaks["training"] - 6_061 - program == 30 * 2**20 + 4_400_000 + heap
    many = {product(64, 32, columns): 1.0 for columns in range(1, 600)}
    plan = plan_of(a_step(forward_backward=many, evaluation={}), batch_plan, BF16, CPU_HERE, None, 0)
    program = plan.memory.peaks["loading"] - loading
    assert plan.memory.peaks["training"] - 6_061 - program == 30 * 2**20 + 1_126_400_000 + heap


def test_without_the_arena_this_cpu_also_holds_what_glibcs_heap_grows_by(monkeypatch: pytest.MonkeyPatch) -> None:
    def training_beyond_loading() -> int:
        peaks = plan_of(a_step(), a_batch_plan(), BF16, CPU_HERE, None, 0).memory.peaks
        assert peaks["training"] - peaks["evaluating"] == 6_061 - 5_160  # both hold it
        return peaks["training"] - peaks["loading"]

    monkeypatch.setattr(device_module, "arena", lambda: object())
    with_arena = training_beyond_loading()
    monkeypatch.setattr(device_module, "arena", lambda: None)
    assert CPU_HERE.simulate_allocator is resident
    assert training_beyond_loading() - with_arena == 30 * 2**20


@pytest.mark.parametrize(
    ("device", "holds", "few_layers"), [(GPU, reserved, 12), (replace(GPU, kind="mps"), resident, 24)]
)
@pytest.mark.parametrize(
    ("checkpointing", "asked", "planned"), [(False, None, 0), (True, None, 6), (True, 2, 2), (False, 2, 2)]
)
def test_a_plan_simulates_its_largest_batch_and_checkpointed_blocks_on_the_device(
    device: Device,
    holds: Any,
    few_layers: int,
    checkpointing: bool,
    asked: int | None,
    planned: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = {"steps": 2, "tokens_per_step": 512, "shuffle": False, "gradient_checkpointing": checkpointing}
    batch_plan = a_batch_plan(a_recipe(train=train), (64,) * 8 + (250,) * 2)
    simulated: list[Any] = []

    def simulate(recipe: Recipe, rows: Rows, *others: Any) -> Step:
        table, largest = rows(True, False)
        assert table is batch_plan.table
        assert largest == list(range(8))  # 512 tokens
        assert rows(True, True)[1] == [8, 9]  # 500 tokens, with four times the pairs
        simulated.append((recipe, *others))
        return a_step()

    monkeypatch.setattr(plan_module, "step_of", simulate)
    plan = plan_run(batch_plan, BF16, device, 9_000, asked)
    assert simulated == [(batch_plan.recipe, BF16, holds, asked, few_layers)]
    assert (plan.checkpointed, plan.available, plan.dtype) == (planned, 9_000, BF16)


def test_only_16_bit_products_compile_code_and_each_only_once() -> None:
    step = a_step(
        forward_backward={product(64, 32, 16): 6.0, product(64, 32, 16, FP32): 1.0, addition(1000): 4.0},
        evaluation={product(64, 32, 16): 2.0, product(64, 32, 48): 1.0},
        optimizer={product(64, 32, 99): 1.0},
    )
    assert step.products == 2


def test_a_softmax_over_four_dimensions_means_stored_attention_scores() -> None:
    def with_softmax(*sizes: int, name: str = "aten._softmax.default") -> dict[Operation, float]:
        return {addition(8): 1.0, Operation(name, (shape(*sizes),), (), (shape(*sizes),)): 2.0}

    assert a_step(forward_backward=with_softmax(1, 6, 40, 40)).scores
    assert not a_step(forward_backward=with_softmax(40, 99)).scores  # a loss's
    assert not a_step(forward_backward=with_softmax(1, 6, 40, 40, name="aten.add.Tensor")).scores


@pytest.mark.parametrize(
    ("base", "device", "held"),
    [
        pytest.param({}, GPU, {}, id="a GPU: the host maps the files"),
        pytest.param({}, CPU_HERE, {}, id="a CPU uses the file's memory"),
        pytest.param({"weights": "int8"}, CPU_HERE, {"stored weights": 6_000, "quantizing": 24_000}, id="quantized"),
        pytest.param({"weights": "nf4"}, GPU, {}, id="quantized for a GPU"),
        pytest.param({"from_scratch": True}, CPU_HERE, {}, id="no weights are read"),
    ],
)
def test_loading_holds_the_files_only_while_converting_weights_on_a_cpu(
    base: dict[str, Any], device: Any, held: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 2_000)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 4_000)
    (tmp_path / "other.bin").write_bytes(b"x" * 9_000)
    parts = {"weights": 300, "trained weights": 2_700, "quantization constants": 11, "reference models": 77}
    step = a_step(parts={**parts, "activations": 900}, parameters=3_000)
    loading = while_loading(a_recipe({"path": str(tmp_path), **base}).base, step, BF16, device)
    assert loading == {"weights": 3_000, "quantization constants": 11, "reference models": 77, **held}


def test_files_stay_mapped_beside_transposed_or_converted_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10_000)
    base = a_recipe(tmp_path).base
    for parameters, is_transposed, dtype, mapped in (
        (5_000, False, BF16, 0),
        (5_000, True, BF16, 10_000),
        (5_000, False, FP32, 10_000),
        (2_500, False, FP32, 0),
        (4_900, False, BF16, 0),  # up to 2 % of headers and tied weights do not count as another precision
        (4_899, False, BF16, 10_000),
        (5_100, False, BF16, 0),
        (5_101, False, BF16, 10_000),
    ):
        step = a_step(parameters=parameters, is_transposed=is_transposed)
        assert mapped_bytes(base, step, dtype) == mapped, (parameters, is_transposed, dtype)


def test_quantizing_takes_20_bytes_per_number_of_a_chunk_or_the_largest_matrix() -> None:
    base = a_recipe({"path": "embedded", "weights": "fp4"}).base
    for largest, numbers in ((1_200, 1_200), (PIECE + 1, PIECE), (PIECE - 1, PIECE - 1)):
        assert while_loading(base, a_step(largest=largest), BF16, CPU_HERE)["quantizing"] == 20 * numbers


def test_missing_files_are_assumed_to_have_the_configs_precision(tmp_path: Path) -> None:
    for dtype, size in (("float32", 4), ("bfloat16", 2), (None, 4)):
        LlamaConfig(dtype=dtype).save_pretrained(tmp_path)
        base = a_recipe(tmp_path).base
        assert stored_bytes(base, a_step(parameters=2_500)) == size * 2_500
        assert stored_dtype(base).itemsize == size


# --- merging and serving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(
            LlamaConfig(hidden_size=96, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=2),
            2 * 5 * 2 * 16 * 100,
            id="grouped queries",
        ),
        pytest.param(
            LlamaConfig(
                hidden_size=96, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=3, head_dim=20
            ),
            2 * 5 * 3 * 20 * 100,
            id="an explicit head_dim",
        ),
        pytest.param(GPT2Config(n_embd=96, n_layer=3, n_head=4), 2 * 3 * 4 * 24 * 100, id="multi-head attention"),
        pytest.param(
            MistralConfig(
                hidden_size=96, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
                sliding_window=30,
            ),
            2 * 2 * 16 * 4 * 30,
            id="a window in every layer",
        ),
    ],
)  # fmt: skip
def test_a_key_and_a_value_are_cached_per_layer_head_and_token(config: Any, expected: int) -> None:
    for itemsize in (2, 4):
        assert key_value_bytes(config, 100, itemsize) == expected * itemsize


def test_only_sliding_window_layers_are_limited_to_their_window() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = LlamaConfig(hidden_size=96, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2)
    config.layer_types, config.sliding_window = kinds, 30
    assert key_value_bytes(config, 100, 2) == 2 * 2 * 16 * 2 * (30 + 100 + 30)
    assert key_value_bytes(config, 20, 2) == 2 * 2 * 16 * 2 * (20 + 20 + 20)  # a text shorter than the window


def test_serving_holds_weights_adapters_and_the_cache_of_every_answer() -> None:
    recipe = a_recipe(HERE / "smollm2-135m")  # 30 layers, 3 heads of keys, 64 wide
    parts = {"weights": 4_000, "trained weights": 1_000, "quantization constants": 11, "adapters": 70, "optimizer": 99}
    evaluating = {"weights": 5_000, "workspace": 61, "loss": 29, "activations": 500}
    plan = a_plan(a_step(parts=parts, evaluation_parts=evaluating), GPU, a_batch_plan(recipe))
    assert serving_memory(plan, context=100, concurrency=3, page=None) == {
        "program": 700_000, "weights": 5_000, "quantization constants": 11, "adapters": 70,
        "key–value cache": 3 * 2 * 30 * 3 * 64 * 100 * 2, "workspace": 90,
    }  # fmt: skip
    in_fp32 = serving_memory(replace(plan, dtype=FP32), context=100, concurrency=1, page=None)
    assert in_fp32["key–value cache"] == 2 * 30 * 3 * 64 * 100 * 4
    paged = serving_memory(plan, context=100, concurrency=3, page=500)
    assert paged["key–value cache"] == 3 * 7 * 500  # of 16 tokens each
    here = serving_memory(replace(plan, device=CPU_HERE), context=100, concurrency=1, page=None)
    assert here["program"] == 700_000 + FIRST_USE


def test_serving_needs_at_least_what_loading_needs() -> None:
    recipe = a_recipe({"path": str(HERE / "smollm2-135m"), "weights": "nf4"})
    step = a_step(largest=10**6, parts={"weights": 5_000, "adapters": 70, "reference models": 10**9})
    serving = serving_memory(a_plan(step, CPU_HERE, a_batch_plan(recipe)), context=8, concurrency=1, page=None)
    assert set(serving) == {"program", "weights", "quantization constants", "stored weights", "quantizing"}
    assert serving["quantizing"] == 20 * 10**6  # no teacher is loaded to serve


def test_merging_holds_fp32_weights_and_the_file_or_the_longest_rows_logits(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 3}', encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 12_000)

    def merging(device: Any, **parts: Any) -> dict[str, int] | None:
        return merging_memory(a_plan(a_step(), device, a_batch_plan(a_recipe(tmp_path, **parts))))

    held = {"program": 700_000 + FIRST_USE + COMPARING, "weights": 10_000, "adapters": 140}
    on_cpu = merging(CPU_HERE)
    assert on_cpu == held | {"stored weights": 12_000}, "more than the logits: 4 copies of 200 tokens"
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 5}', encoding="utf-8")
    assert merging(CPU_HERE) == held | {"logits": 4 * 200 * 5 * 4}
    cut = merging(CPU_HERE, data={"train": "rows.jsonl", "max_length": 200})
    assert cut == held | {"logits": 4 * 1024 * 5 * 4}, "rows that training cuts are compared up to 1,024 tokens"
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 3}', encoding="utf-8")
    for_gpu = merging(GPU)
    assert for_gpu is not None
    assert for_gpu["program"] - FIRST_USE - COMPARING == pytest.approx(
        program_bytes(), rel=0.2
    )  # the host's, not the GPU's
    assert {name: for_gpu[name] for name in on_cpu if name != "program"} == {
        name: on_cpu[name] for name in on_cpu if name != "program"
    }
    for method, merged in (
        ("ia3", True),
        ({"kind": "peft", "peft_type": "LOHA"}, True),
        ("adapter", False),
        ("full", False),
    ):
        assert (merging(GPU, method=method) is not None) is merged, method


# --- how many devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "cards"),
    [
        pytest.param(7_000, 1, id="it fits"),
        pytest.param(6_999, 2, id="one byte too few for one card"),
        pytest.param(1_300 + 2_850, 2, id="half of the sharded tensors fits"),
        pytest.param(1_300 + 2_849, 3, id="one byte less than half"),
        pytest.param(1_300 + 1, 5_700, id="one byte per card"),
        pytest.param(1_300, 0, id="no room for a shard"),
        pytest.param(900, 0, id="no room for a card's own tensors"),
    ],
)
def test_weights_gradients_and_optimizer_are_sharded_over_cards(available: int, cards: int) -> None:
    parts = {
        "program": 700, "activations": 600, "weights": 3_000, "quantization constants": 200, "gradients": 1_000,
        "optimizer": 1_500,
    }  # fmt: skip
    assert cards_needed(a_plan(memory=Memory(parts, {}), available=available)) == cards


# --- devices ---------------------------------------------------------------------------------------------------------


def test_known_devices_are_in_bytes_flops_and_dollars() -> None:
    card = known_devices()["h100"]
    assert card.memory_bytes == int(79.2 * 2**30)
    assert card.flops == {"bf16": 989e12, "fp32": 67e12}
    assert card.bytes_per_second == 3.35e12
    assert card.program_bytes == int(0.7 * 2**30)
    assert (card.name, card.kind, card.price, card.source) == ("h100", "cuda", 3.0, "NVIDIA H100 SXM data sheet")
    apple = device_named("M2-Max-64GB")
    assert (apple.name, apple.kind, apple.price) == ("m2-max-64gb", "mps", None)


def test_every_known_device_has_plausible_rates() -> None:
    for name, card in known_devices().items():
        assert name == card.name == name.lower()
        assert 10 * 2**30 < card.memory_bytes < 200 * 2**30, name
        assert 1e11 < card.bytes_per_second < 1e13, name
        assert 4e12 < card.flops["fp32"] <= card.flops.get("bf16", 1e15) < 2e15, name
        assert 0 < card.program_bytes < 2**31, name
        assert card.price is None or 0.05 < card.price < 10, name
        assert (card.is_here, card.is_this_cpu) == (False, False)


def test_a_device_without_bf16_uses_fp32() -> None:
    assert device_named("t4").dtype == FP32
    assert device_named("l4").dtype == BF16


def test_each_kind_of_device_has_its_own_allocator() -> None:
    from tunesmith.engine.allocator import arena
    from tunesmith.planner.allocators import reserved, spanned

    assert device_named("l4").simulate_allocator is reserved
    assert device_named("m4-24gb").simulate_allocator is resident
    assert CPU_ELSEWHERE.simulate_allocator is resident
    assert replace(CPU_HERE, kind="cuda").simulate_allocator is reserved
    assert CPU_HERE.simulate_allocator is (resident if arena() is None else spanned)


def test_this_cpu_is_measured_and_not_looked_up() -> None:
    import psutil

    device = this_device(torch.device("cpu"))
    assert device_named("here").is_here
    assert (device.name, device.kind, device.flops) == ("this CPU", "cpu", {})
    assert device.memory_bytes == psutil.virtual_memory().total
    assert device.program_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert (device.is_here, device.is_this_cpu, CPU_ELSEWHERE.is_this_cpu) == (True, True, False)
    assert not replace(CPU_HERE, kind="cuda").is_this_cpu
    assert device.dtype in (FP32, BF16)
