"""What is held in each phase of a run, when its adapter is merged and when it serves: by hand, from given figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import CPU_ELSEWHERE, CPU_HERE, GPU, a_batch_plan, a_plan, a_recipe, a_step, addition, product, shape
from transformers import GPT2Config, LlamaConfig, MistralConfig

from tunesmith.models.load import stored_dtype
from tunesmith.ops.quantized import PIECE
from tunesmith.planner.afterwards import key_value_bytes, merging_memory, serving_memory
from tunesmith.planner.allocators import resident
from tunesmith.planner.ask import cards_needed
from tunesmith.planner.device import device_named, known_devices, program_bytes, this_device
from tunesmith.planner.loading import mapped_bytes, stored_bytes, while_loading
from tunesmith.planner.plan import FIRST_USE, Memory, plan_of
from tunesmith.planner.shapes import HERE
from tunesmith.planner.trace import Operation

BF16, FP32 = torch.bfloat16, torch.float32


# --- training, evaluating, loading -----------------------------------------------------------------------------------


def test_each_phase_is_the_program_and_its_own_parts_and_the_peak_is_the_largest() -> None:
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


def test_a_plan_shows_the_phase_that_holds_most_whichever_it_is() -> None:
    judged = a_step(evaluating={"weights": 5_000, "loss": 9_000}, parts={"weights": 5_000, "loss": 41})
    plan = plan_of(judged, a_batch_plan(), BF16, GPU, None, 0)
    assert plan.memory.parts == {"program": 700_000, "weights": 5_000, "loss workspace": 9_000}
    quantized = a_batch_plan(a_recipe({"path": "embedded", "weights": "nf4"}))
    plan = plan_of(a_step(), quantized, BF16, CPU_ELSEWHERE, None, 0)
    assert plan.memory.parts["quantizing"] == 20 * 1_200
    assert plan.memory.parts["program"] == 700_000
    assert plan.memory.peak_bytes == plan.memory.peaks["loading"] > plan.memory.peaks["training"]


def test_trained_weights_count_with_the_others() -> None:
    step = a_step(parts={"weights": 400, "trained weights": 4_600, "gradients": 800}, slack=0)
    plan = plan_of(step, a_batch_plan(), BF16, GPU, None, 0)
    assert plan.memory.parts["weights"] == 5_000
    assert "trained weights" not in plan.memory.parts
    assert plan.memory.peaks["loading"] == 705_000


def test_a_plan_fits_within_what_is_left_or_what_the_device_has() -> None:
    needed = 706_061
    for available, fits in ((needed, True), (needed - 1, False), (None, True)):
        plan = plan_of(a_step(), a_batch_plan(), BF16, GPU, available, 0)
        assert plan.fits is fits
    assert plan.available == GPU.memory_bytes
    small = replace(GPU, memory_bytes=needed - 1)
    assert not plan_of(a_step(), a_batch_plan(), BF16, small, None, 0).fits


def test_on_this_processor_first_use_and_code_for_each_shape_and_width_stay_with_the_run() -> None:
    step = a_step()  # two products in 16 bits, one of them in learning and judging
    recipe = a_recipe(train={"epochs": 2, "tokens_per_step": 200, "shuffle": False})
    batch_plan = a_batch_plan(recipe)  # 160, 90, 200 and 50 tokens: one or two times 128
    assert batch_plan.layout(True).widths == {1, 2}
    plan = plan_of(step, batch_plan, BF16, CPU_HERE, None, 0)
    loading = sum(while_loading(recipe.base, step, BF16, CPU_HERE).values())
    program = plan.memory.peaks["loading"] - loading
    heap = 30 * 2**20 if CPU_HERE.holds is resident else 0
    assert program == pytest.approx(program_bytes(), rel=0.2)
    assert plan.memory.peaks["evaluating"] - 5_160 - program == 30 * 2**20 + 4_400_000 + heap
    assert plan.memory.peaks["training"] - 6_061 - program == 30 * 2**20 + 4_400_000 + heap
    many = {product(64, 32, columns): 1.0 for columns in range(1, 600)}
    plan = plan_of(a_step(learning=many, judging={}), batch_plan, BF16, CPU_HERE, None, 0)
    program = plan.memory.peaks["loading"] - loading
    assert plan.memory.peaks["training"] - 6_061 - program == 30 * 2**20 + 1_126_400_000 + heap


def test_only_products_in_16_bits_make_code_and_each_but_once() -> None:
    step = a_step(
        learning={product(64, 32, 16): 6.0, product(64, 32, 16, FP32): 1.0, addition(1000): 4.0},
        judging={product(64, 32, 16): 2.0, product(64, 32, 48): 1.0},
        updating={product(64, 32, 99): 1.0},
    )
    assert step.products == 2


def test_attention_keeps_scores_where_a_softmax_is_over_four_dimensions() -> None:
    def learning(*sizes: int, name: str = "aten._softmax.default") -> dict[Operation, float]:
        return {addition(8): 1.0, Operation(name, (shape(*sizes),), (), (shape(*sizes),)): 2.0}

    assert a_step(learning=learning(1, 6, 40, 40)).scores
    assert not a_step(learning=learning(40, 99)).scores  # a loss's
    assert not a_step(learning=learning(1, 6, 40, 40, name="aten.add.Tensor")).scores


@pytest.mark.parametrize(
    ("base", "device", "held"),
    [
        pytest.param({}, GPU, {}, id="a GPU: the host maps the files"),
        pytest.param({}, CPU_HERE, {}, id="a CPU uses what lies in the file"),
        pytest.param({"weights": "int8"}, CPU_HERE, {"stored weights": 6_000, "quantizing": 24_000}, id="quantized"),
        pytest.param({"weights": "nf4"}, GPU, {}, id="quantized for a GPU"),
        pytest.param({"from_scratch": True}, CPU_HERE, {}, id="nothing is read"),
    ],
)
def test_while_weights_are_read_their_files_are_held_where_other_weights_are_made_of_them(
    base: dict[str, Any], device: Any, held: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 2_000)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 4_000)
    (tmp_path / "other.bin").write_bytes(b"x" * 9_000)
    parts = {"weights": 300, "trained weights": 2_700, "quantization constants": 11, "reference models": 77}
    step = a_step(parts={**parts, "activations": 900}, parameters=3_000)
    found = while_loading(a_recipe({"path": str(tmp_path), **base}).base, step, BF16, device)
    assert found == {"weights": 3_000, "quantization constants": 11, "reference models": 77, **held}


def test_files_stay_mapped_beside_weights_that_are_turned_or_of_another_precision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10_000)
    base = a_recipe(tmp_path).base
    for parameters, turned, dtype, mapped in (
        (5_000, False, BF16, 0),
        (5_000, True, BF16, 10_000),
        (5_000, False, FP32, 10_000),
        (2_500, False, FP32, 0),
        (4_900, False, BF16, 0),  # 2 % of headers and tied weights are no other precision
        (4_899, False, BF16, 10_000),
        (5_100, False, BF16, 0),
        (5_101, False, BF16, 10_000),
    ):
        step = a_step(parameters=parameters, turned=turned)
        assert mapped_bytes(base, step, dtype) == mapped, (parameters, turned, dtype)


def test_quantizing_takes_twenty_bytes_a_number_of_a_piece_or_of_the_largest_matrix() -> None:
    base = a_recipe({"path": "embedded", "weights": "fp4"}).base
    for largest, numbers in ((1_200, 1_200), (PIECE + 1, PIECE), (PIECE - 1, PIECE - 1)):
        assert while_loading(base, a_step(largest=largest), BF16, CPU_HERE)["quantizing"] == 20 * numbers


def test_files_that_are_not_here_have_the_precision_that_the_config_names(tmp_path: Path) -> None:
    for dtype, size in (("float32", 4), ("bfloat16", 2), (None, 4)):
        LlamaConfig(dtype=dtype).save_pretrained(tmp_path)
        base = a_recipe(tmp_path).base
        assert stored_bytes(base, a_step(parameters=2_500)) == size * 2_500
        assert stored_dtype(base).itemsize == size


# --- afterwards ------------------------------------------------------------------------------------------------------


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
            id="a width of its own",
        ),
        pytest.param(GPT2Config(n_embd=96, n_layer=3, n_head=4), 2 * 3 * 4 * 24 * 100, id="every head has its own"),
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
def test_keys_and_values_are_two_a_layer_for_each_head_and_token(config: Any, expected: int) -> None:
    for itemsize in (2, 4):
        assert key_value_bytes(config, 100, itemsize) == expected * itemsize


def test_only_layers_with_a_window_keep_no_more_than_it() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = LlamaConfig(hidden_size=96, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2)
    config.layer_types, config.sliding_window = kinds, 30
    assert key_value_bytes(config, 100, 2) == 2 * 2 * 16 * 2 * (30 + 100 + 30)
    assert key_value_bytes(config, 20, 2) == 2 * 2 * 16 * 2 * (20 + 20 + 20)  # a text within the window


def test_serving_holds_weights_adapters_and_keys_and_values_of_every_answer() -> None:
    recipe = a_recipe(HERE / "smollm2-135m")  # 30 layers, 3 heads of keys, 64 wide
    parts = {"weights": 4_000, "trained weights": 1_000, "quantization constants": 11, "adapters": 70, "optimizer": 99}
    evaluating = {"weights": 5_000, "workspace": 61, "loss": 29, "activations": 500}
    plan = a_plan(a_step(parts=parts, evaluating=evaluating), GPU, a_batch_plan(recipe))
    assert serving_memory(plan, context=100, concurrency=3) == {
        "program": 700_000, "weights": 5_000, "quantization constants": 11, "adapters": 70,
        "key–value cache": 3 * 2 * 30 * 3 * 64 * 100 * 2, "workspace": 90,
    }  # fmt: skip
    whole = serving_memory(replace(plan, dtype=FP32), context=100, concurrency=1)
    assert whole["key–value cache"] == 2 * 30 * 3 * 64 * 100 * 4
    here = serving_memory(replace(plan, device=CPU_HERE), context=100, concurrency=1)
    assert here["program"] == 700_000 + FIRST_USE


def test_serving_takes_what_loading_takes_where_that_is_more() -> None:
    recipe = a_recipe({"path": str(HERE / "smollm2-135m"), "weights": "nf4"})
    step = a_step(largest=10**6, parts={"weights": 5_000, "adapters": 70, "reference models": 10**9})
    found = serving_memory(a_plan(step, CPU_HERE, a_batch_plan(recipe)), context=8, concurrency=1)
    assert set(found) == {"program", "weights", "quantization constants", "stored weights", "quantizing"}
    assert found["quantizing"] == 20 * 10**6  # no teacher is loaded to serve


def test_merging_holds_the_model_in_fp32_its_files_the_adapter_and_the_hosts_program(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 6_000)

    def merging(device: Any, **parts: Any) -> dict[str, int] | None:
        return merging_memory(a_plan(a_step(), device, a_batch_plan(a_recipe(tmp_path, **parts))))

    here = merging(CPU_HERE)
    assert here == {"program": 700_000 + FIRST_USE, "weights": 10_000, "stored weights": 6_000, "adapters": 140}
    there = merging(GPU)
    assert there is not None
    assert there["program"] - FIRST_USE == pytest.approx(program_bytes(), rel=0.2)  # the host's, not the GPU's
    assert {name: there[name] for name in here if name != "program"} == {
        name: here[name] for name in here if name != "program"
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
        pytest.param(6_999, 2, id="a byte too little for one"),
        pytest.param(1_300 + 2_850, 2, id="half of what is shared out fits beside its own"),
        pytest.param(1_300 + 2_849, 3, id="a byte less than half"),
        pytest.param(1_300 + 1, 5_700, id="a byte each"),
        pytest.param(1_300, 0, id="no room beside its own"),
        pytest.param(900, 0, id="not even its own"),
    ],
)
def test_weights_gradients_and_optimizer_are_shared_out_and_the_rest_is_each_cards_own(
    available: int, cards: int
) -> None:
    parts = {
        "program": 700, "activations": 600, "weights": 3_000, "quantization constants": 200, "gradients": 1_000,
        "optimizer": 1_500,
    }  # fmt: skip
    assert cards_needed(a_plan(memory=Memory(parts, {}), available=available)) == cards


# --- devices ---------------------------------------------------------------------------------------------------------


def test_the_table_is_in_bytes_flops_and_dollars() -> None:
    card = known_devices()["h100"]
    assert card.memory_bytes == int(79.2 * 2**30)
    assert card.flops == {"bf16": 989e12, "fp32": 67e12}
    assert card.bytes_per_second == 3.35e12
    assert card.program_bytes == int(0.7 * 2**30)
    assert (card.name, card.kind, card.price, card.source) == ("h100", "cuda", 3.0, "NVIDIA H100 SXM data sheet")
    apple = device_named("M2-Max-64GB")
    assert (apple.name, apple.kind, apple.price) == ("m2-max-64gb", "mps", None)


def test_every_device_of_the_table_has_rates_that_can_be() -> None:
    for name, card in known_devices().items():
        assert name == card.name == name.lower()
        assert 10 * 2**30 < card.memory_bytes < 200 * 2**30, name
        assert 1e11 < card.bytes_per_second < 1e13, name
        assert 4e12 < card.flops["fp32"] <= card.flops.get("bf16", 1e15) < 2e15, name
        assert 0 < card.program_bytes < 2**31, name
        assert card.price is None or 0.05 < card.price < 10, name
        assert (card.is_here, card.is_this_cpu) == (False, False)


def test_a_device_without_bf16_takes_fp32() -> None:
    assert device_named("t4").dtype == FP32
    assert device_named("l4").dtype == BF16


def test_each_kind_of_device_has_the_allocator_that_is_its_own() -> None:
    from tunesmith.engine.allocator import arena
    from tunesmith.planner.allocators import reserved, spanned

    assert device_named("l4").holds is reserved
    assert device_named("m4-24gb").holds is resident
    assert CPU_ELSEWHERE.holds is resident
    assert replace(CPU_HERE, kind="cuda").holds is reserved
    assert CPU_HERE.holds is (resident if arena() is None else spanned)


def test_this_processor_is_measured_and_not_looked_up() -> None:
    import psutil

    found = this_device(torch.device("cpu"))
    assert device_named("here").is_here
    assert (found.name, found.kind, found.flops) == ("this CPU", "cpu", {})
    assert found.memory_bytes == psutil.virtual_memory().total
    assert found.program_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert (found.is_here, found.is_this_cpu, CPU_ELSEWHERE.is_this_cpu) == (True, True, False)
    assert not replace(CPU_HERE, kind="cuda").is_this_cpu
    assert found.dtype in (FP32, BF16)
