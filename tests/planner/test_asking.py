"""From the user's arguments to a plan: recipes, precisions, placeholder rows, and what a smaller recipe gives up."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import CPU_HERE, GPU, a_plan, a_recipe, a_step
from transformers import BertConfig, LlamaConfig

import tunesmith
from tunesmith.config.base import Base
from tunesmith.config.recipe import Recipe
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.errors import UserError
from tunesmith.models.precision import dtype_of
from tunesmith.planner import fitting, request
from tunesmith.planner.device import Device, known_devices
from tunesmith.planner.extrapolation import _extrapolated, _few_layers, step_of
from tunesmith.planner.fitting import LEAST_TOKENS, MARGIN, _between, _halved, plan_within, refusal
from tunesmith.planner.measure import available_memory
from tunesmith.planner.plan import Memory, Plan, plan_run
from tunesmith.planner.request import (
    NO_ROWS,
    _ladder,
    batch_plan_of,
    best_that_fits,
    cards_needed,
    on_devices,
    precision,
    recipe_of,
    usual_plans,
)
from tunesmith.planner.shapes import HERE, shown_name, with_known_config
from tunesmith.planner.step import rows_like

BF16, FP32 = torch.bfloat16, torch.float32


BARE = replace(GPU, kind="mps", program_bytes=0)
"""A device that holds nothing else and whose allocator counts in bytes, not in segments."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a Llama of four small blocks, without weights or a tokenizer."""
    directory = tmp_path_factory.mktemp("deep")
    LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, max_position_embeddings=2048,
    ).save_pretrained(directory)  # fmt: skip
    return directory


@pytest.fixture(scope="module", autouse=True)
def cached_plans() -> Iterator[None]:
    """Plan the same run on the same device only once in this file; the available memory is set on each plan."""
    plans: dict[Any, Plan] = {}

    def cached_plan(
        batch_plan: BatchPlan,
        dtype: torch.dtype,
        device: Device,
        available: int | None = None,
        checkpointed: int | None = None,
    ) -> Plan:
        run = (
            batch_plan.recipe.model_dump_json(),
            batch_plan.tokens_per_batch,
            tuple(batch_plan.table.lengths.tolist()),
        )
        key = (*run, batch_plan.known, dtype, device.name, device.kind, device.program_bytes, checkpointed)
        if key not in plans:
            plans[key] = plan_run(batch_plan, dtype, device, None, checkpointed)
        return replace(plans[key], available=device.memory_bytes if available is None else available)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "plan_run", cached_plan)
        patch.setattr(request, "plan_run", cached_plan)
        yield


# --- the recipe that is planned ---------------------------------------------------------------------------------------


def test_base_data_and_overrides_replace_the_recipes_fields(tmp_path: Path) -> None:
    written = tmp_path / "recipe.yaml"
    written.write_text("base: embedded\ndata: {train: own.jsonl, max_length: 77}\nmethod: ia3\n", encoding="utf-8")
    recipe = recipe_of("gpt2", written, "other.jsonl", ["train.steps=9"])
    assert recipe.base.path == str(HERE / "gpt2")
    assert recipe.data.train == ["other.jsonl"]
    assert (recipe.data.max_length, recipe.method.kind, recipe.train.steps) == (77, "ia3", 9)
    unchanged = recipe_of(None, written, None, [])
    assert unchanged.base.path == "embedded"
    assert unchanged.data.train[0].endswith("own.jsonl")
    assert recipe_of("gpt2", None, None, []).data.train == [NO_ROWS]
    with pytest.raises(UserError, match="Name a base"):
        recipe_of(None, None, None, [])


def test_a_shipped_config_is_shown_by_its_short_name_and_a_path_unchanged() -> None:
    assert shown_name(str(HERE / "gpt2-xl")) == "gpt2-xl"
    assert shown_name("/models/gpt2-xl") == "/models/gpt2-xl"
    assert with_known_config(Base(path="META-LLAMA/Llama-2-7b-hf")).path == str(HERE / "llama-2-7b")
    assert with_known_config(Base(path="llama-2-7b-other")).path == "llama-2-7b-other"


def test_auto_precision_comes_from_the_device_and_any_other_from_the_recipe() -> None:
    auto = a_recipe()
    assert precision(auto, GPU) == BF16
    assert precision(auto, replace(GPU, flops={"fp32": 1e12})) == FP32
    assert precision(auto, CPU_HERE) == dtype_of("auto", torch.device("cpu"))
    assert precision(a_recipe(train={"precision": "fp32"}), GPU) == FP32
    assert precision(a_recipe(train={"precision": "bf16"}), CPU_HERE) == BF16
    assert precision(a_recipe({"path": "embedded", "weights": "fp32"}), GPU) == FP32


# --- placeholder rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "lengths", "steps", "known"),
    [
        pytest.param({}, [1024] * 2, 1, False, id="one step of rows of the maximum length"),
        pytest.param({"data.max_length": 300}, [300] * 7, 1, False, id="the last row exceeds the step's tokens"),
        pytest.param({"train.tokens_per_step": 500}, [500], 1, False, id="a row is at most as long as a step"),
        pytest.param({"train.steps": 40}, [1024] * 2, 40, True, id="a given number of steps is known"),
    ],
)
def test_without_rows_one_step_of_rows_of_the_maximum_length_is_planned(
    settings: dict[str, Any], lengths: list[int], steps: int, known: bool, deep: Path
) -> None:
    recipe = recipe_of(str(deep), None, None, [f"{name}={value}" for name, value in settings.items()])
    batch_plan = batch_plan_of(recipe)
    assert batch_plan.table.lengths.tolist() == lengths
    assert batch_plan.table.loss_mask.all()
    assert (batch_plan.recipe.train.steps, batch_plan.recipe.train.epochs, batch_plan.known) == (steps, None, known)


def test_without_a_tokenizer_four_characters_count_as_a_token(deep: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    chats = [("a" * 10, "b" * 7), ("a" * 10, "b" * 6), ("a", "b"), ("a" * 400, "b" * 400)]
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in chats]
    rows.write_text("\n".join(lines), encoding="utf-8")
    recipe = recipe_of(str(deep), None, str(rows), ["data.max_length=100", "data.held_out=0", "objective=instruction"])
    batch_plan = batch_plan_of(recipe)
    assert batch_plan.table.lengths.tolist() == [ceil(17 / 4), 4, 2, 100]
    assert batch_plan.known
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "c" * 41}), encoding="utf-8")
    recipe = recipe_of(str(deep), None, str(texts), ["objective=text", "data.held_out=0"])
    assert batch_plan_of(recipe).table.lengths.tolist() == [11]


def test_placeholder_rows_have_the_objectives_targets_and_loss_mask() -> None:
    text = rows_like(a_recipe().objective, [5, 3])
    assert (text.lengths.tolist(), text.loss_mask.tolist(), text.targets) == ([5, 3], [True] * 8, None)
    for objective, values in (
        ({"kind": "classification", "labels": ["a", "b", "c"]}, 1),
        ({"kind": "multi_label", "labels": ["a", "b", "c"]}, 3),
        ({"kind": "regression"}, 1),
    ):
        labeled = rows_like(a_recipe(objective=objective).objective, [4, 2])
        assert labeled.loss_mask.tolist() == [False, False, False, True, False, True]
        assert [labeled.targets_of(row).tolist() for row in range(2)] == [[0.0] * values] * 2
        assert labeled.ids.dtype == np.int32
    with pytest.raises(UserError, match=r"objective: token_classification: its plan needs rows\. Give data.train"):
        rows_like(a_recipe(objective={"kind": "token_classification", "labels": ["a"]}).objective, [4])


# --- what a smaller recipe gives up -----------------------------------------------------------------------------------


def steps_down(recipe: Recipe) -> list[tuple[str, str, int, list[str]]]:
    return [
        (smaller.method.kind, smaller.base.weights, smaller.data.max_length, overrides)
        for smaller, _, overrides in _ladder(recipe)
    ]


def test_each_smaller_recipe_gives_up_one_more_thing_in_a_fixed_order() -> None:
    full = a_recipe(method="full", data={"train": "rows.jsonl", "max_length": 1100})
    assert steps_down(full) == [
        ("full", "auto", 1100, []),
        ("lora", "auto", 1100, ["method=lora"]),
        ("lora", "nf4", 1100, ["base.weights=nf4"]),
        ("lora", "nf4", 550, ["data.max_length=550"]),
        ("lora", "nf4", 275, ["data.max_length=275"]),
        ("lora", "nf4", 137, ["data.max_length=137"]),
    ]
    losses = [tradeoffs for _, tradeoffs, _ in _ladder(full)]
    assert losses[3] == ["rows of at most 550 tokens"]
    assert [len(each) for each in losses] == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("longest", "shorter"), [(256, []), (257, [128]), (512, [256]), (513, [256]), (514, [257, 128])]
)
def test_the_row_length_is_split_in_two_while_it_is_over_256_tokens(longest: int, shorter: list[int]) -> None:
    recipe = a_recipe(method="ia3", data={"train": "rows.jsonl", "max_length": longest})
    assert [length for _, _, length, _ in steps_down(recipe)] == [longest, longest, *shorter]


@pytest.mark.parametrize(
    ("parts", "kinds"),
    [
        pytest.param({"method": {"kind": "layers", "last": 1}}, [("layers", "auto"), ("lora", "auto")], id="layers"),
        pytest.param({"method": "ia3"}, [("ia3", "auto"), ("ia3", "nf4")], id="an adapter method is kept"),
        pytest.param({"base": {"path": "embedded", "weights": "int8"}}, [("lora", "int8")], id="already quantized"),
    ],
)
def test_nothing_is_given_up_that_the_recipe_does_not_have(parts: dict[str, Any], kinds: list[tuple[str, str]]) -> None:
    base = parts.pop("base", "embedded")
    recipe = a_recipe(base, data={"train": "rows.jsonl", "max_length": 256}, **parts)
    steps = [(kind, weights) for kind, weights, _, _ in steps_down(recipe)]
    assert steps[: len(kinds)] == kinds
    assert len(steps) == len(kinds) + (kinds[-1] == ("lora", "auto"))


def test_a_proposal_lists_the_overrides_that_turn_the_recipe_into_it(deep: Path) -> None:
    settings = ["method=ia3", "data.max_length=256", "train.tokens_per_step=512"]
    recipe = recipe_of(str(deep), None, None, settings)
    usual = request.plan_run(batch_plan_of(recipe), BF16, BARE).memory.peak_bytes
    unchanged = best_that_fits(recipe, BARE, ceil((usual + 1) * MARGIN))
    assert (unchanged.tradeoffs, unchanged.overrides, unchanged.plan.checkpointed) == ((), (), 0)
    limit = ceil(usual * 0.8)
    low = best_that_fits(recipe, BARE, limit)
    overridden = recipe_of(str(deep), None, None, [*settings, *low.overrides])
    assert low.plan.memory.peak_bytes * MARGIN <= limit + MARGIN
    assert low.plan.checkpointed > 0
    assert f"{low.plan.checkpointed} of 4 blocks are checkpointed: up to a third more time" in low.tradeoffs
    assert overridden.base.weights == low.plan.batch_plan.recipe.base.weights
    assert overridden.train.max_batch_tokens == low.plan.batch_plan.tokens_per_batch
    assert overridden.train.memory_limit == f"{limit / 1e9:.4g}GB"
    tokens = low.plan.batch_plan.tokens_per_batch
    assert (f"{tokens:,} tokens per batch instead of 512" in low.tradeoffs) == (tokens < 512)
    with pytest.raises(UserError, match=r"^No recipe for .* fits into 0\.0 GB .*Use a smaller base model\.$"):
        best_that_fits(recipe, BARE, 1_000)


# --- within a limit ---------------------------------------------------------------------------------------------------


def test_tokens_per_batch_are_halved_down_to_the_longest_row() -> None:
    assert list(_halved(2048, 300)) == [2048, 1024, 512, 300]
    assert list(_halved(2048, 512)) == [2048, 1024, 512]
    assert list(_halved(100, 300)) == [100]
    assert LEAST_TOKENS == 128


@pytest.fixture(scope="module")
def by_count(deep: Path) -> dict[int, Plan]:
    """The same run with each number of checkpointed blocks, on a device that holds nothing else."""
    settings = ["method=ia3", "data.max_length=512", "train.tokens_per_step=1024"]
    batch_plan = batch_plan_of(recipe_of(str(deep), None, None, settings))
    return {count: request.plan_run(batch_plan, BF16, BARE, None, count) for count in range(5)}


def test_as_few_blocks_as_possible_are_checkpointed(by_count: dict[int, Plan]) -> None:
    peaks = [by_count[count].memory.peak_bytes for count in range(5)]
    assert peaks[0] > peaks[2] > peaks[4]
    without, full = by_count[0], by_count[4]
    for room in (peaks[1], peaks[2], peaks[3], peaks[2] - 1, peaks[0] - 1):
        plan = _between(replace(without, available=room), replace(full, available=room), BF16)
        # the search starts where the straight line between none and all crosses the limit
        first = max(1, ceil((peaks[0] - room) / (peaks[0] - peaks[4]) * 4))
        assert plan.checkpointed == next(count for count in range(first, 5) if peaks[count] <= room), room
        assert plan.fits
    none = replace(full, available=peaks[4] - 1)
    assert _between(replace(without, available=peaks[4] - 1), none, BF16) is none


@pytest.mark.parametrize(
    ("blocks", "available", "tried"),
    [
        pytest.param(4, 6_999, [1, 2, 3], id="one by one"),
        pytest.param(8, 6_999, [1, 2, 3, 4, 5, 6, 7], id="an eighth is one block"),
        pytest.param(16, 6_999, [1, 3, 5, 7, 9, 11, 13, 15], id="an eighth is two blocks"),
        pytest.param(35, 6_999, [1, 5, 9, 13, 17, 21, 25, 29, 33], id="an eighth is rounded down"),
        pytest.param(16, 4_000, [8, 10, 12, 14], id="from half of the blocks on, if they save half"),
    ],
)
def test_the_blocks_of_a_deep_model_are_checkpointed_in_eighths(
    blocks: int, available: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_with(peak: int, checkpointed: int) -> Plan:
        memory = Memory({"weights": peak}, {})
        return a_plan(a_step(blocks=blocks), available=available, checkpointed=checkpointed, memory=memory)

    without, full = plan_with(7_000, 0), plan_with(1_000, blocks)
    counts: list[int] = []

    def too_large(batch_plan: BatchPlan, dtype: torch.dtype, device: Device, room: int, count: int) -> Plan:
        assert (batch_plan, dtype, device, room) == (without.batch_plan, BF16, without.device, available)
        counts.append(count)
        return plan_with(available + 1, count)

    monkeypatch.setattr(fitting, "plan_run", too_large)
    assert _between(without, full, BF16) is full
    assert counts == tried


def test_a_limit_keeps_a_margin_and_checkpointing_comes_before_smaller_batches(by_count: dict[int, Plan]) -> None:
    batch_plan = by_count[0].batch_plan
    peaks = [by_count[count].memory.peak_bytes for count in range(5)]
    free = plan_within(batch_plan, BF16, BARE, ceil(peaks[0] * 1.05) + 1)
    assert (free.checkpointed, free.batch_plan.tokens_per_batch) == (0, 1024)
    some = plan_within(batch_plan, BF16, BARE, round(peaks[0] * 1.04))
    assert 0 < some.checkpointed < 4
    assert some.batch_plan.tokens_per_batch == 1024
    assert some.available == round(round(peaks[0] * 1.04) / 1.05)
    fewer = plan_within(batch_plan, BF16, BARE, round(peaks[4] * 1.04))
    assert fewer.batch_plan.tokens_per_batch == 512
    assert fewer.memory.peak_bytes <= fewer.available == round(round(peaks[4] * 1.04) / 1.05)


def test_a_run_that_does_not_fit_is_refused_with_settings_that_would(by_count: dict[int, Plan]) -> None:
    batch_plan = by_count[0].batch_plan
    base = batch_plan.recipe.base.path
    least = fitting.plan_run(replace(batch_plan, tokens_per_batch=512), BF16, BARE, None, 4).memory.peak_bytes
    with pytest.raises(UserError) as refused:
        plan_within(batch_plan, BF16, BARE, 1_000)
    message = str(refused.value)
    assert message.startswith(
        "train.memory_limit: 0.00 GB are too few: batches of 512 tokens (the longest row has 512) take "
    )
    assert f"take {least * 1.05 / 1e9:.2f} GB with every block checkpointed" in message
    assert f"Set memory_limit: {ceil(least * 1.05 / 1e8) / 10:.1f}GB, a lower data.max_length" in message
    none = refusal(replace(by_count[0], available=1_000), BF16)
    assert none.startswith(
        f"base: {base}: 0.0 GB are needed and 0.0 GB are free. To see what fits: tunesmith plan {base} "
    )
    assert "--fit 0.0GB. Or set base.weights: nf4" in none
    near = replace(by_count[0], available=round(by_count[0].memory.peak_bytes * 0.999))
    fitting_plan = plan_within(batch_plan, BF16, BARE, near.available)
    assert (
        f"which checkpoints {fitting_plan.checkpointed} of 4 blocks, with 1,024 tokens per batch, and takes 0.0 GB."
        in refusal(near, BF16)
    )


# --- on other devices -------------------------------------------------------------------------------------------------


SHORT = ["method=ia3", "data.max_length=32", "train.tokens_per_step=64"]


def test_each_device_has_its_own_plan(tiny_model: Path) -> None:
    rows = {row.device.name: row for row in on_devices(recipe_of(str(tiny_model), None, None, SHORT))}
    assert list(rows) == list(known_devices())
    for name in ("l4", "t4", "m4-24gb"):
        own = tunesmith.plan(str(tiny_model), overrides=SHORT, device=name)
        assert rows[name].plan.memory == own.memory, name
        assert rows[name].plan.dtype == (FP32 if name == "t4" else BF16)
        assert rows[name].plan.available == known_devices()[name].memory_bytes
        assert rows[name].cards == cards_needed(own) == 1


@pytest.mark.long
def test_usual_plans_cover_every_method_and_weight_format(tiny_model: Path) -> None:
    plans = usual_plans(recipe_of(str(tiny_model), None, None, SHORT[1:]), GPU)
    usual = {
        "full": ("full", "auto"),
        "lora": ("lora", "auto"),
        "lora, int8 base": ("lora", "int8"),
        "lora, nf4 base": ("lora", "nf4"),
        "adapter": ("adapter", "auto"),
        "prefix": ("prefix", "auto"),
        "ia3": ("ia3", "auto"),
    }
    assert list(plans) == list(usual)
    for name, plan in plans.items():
        assert isinstance(plan, Plan), name
        recipe = plan.batch_plan.recipe
        assert (recipe.method.kind, recipe.base.weights) == usual[name]
        assert plan.available == GPU.memory_bytes


def test_a_base_that_does_not_suit_the_objective_is_refused_once(tmp_path: Path) -> None:
    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=300).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is an encoder; objective: instruction needs a decoder"):
        usual_plans(recipe_of(str(tmp_path), None, None, []), GPU)


# --- extrapolation from few blocks ------------------------------------------------------------------------------------


def test_deep_models_are_simulated_in_multiples_of_their_layer_pattern() -> None:
    def counts(layers: int, kinds: list[str] | None = None, few: int = 12) -> tuple[int, int] | None:
        config = LlamaConfig(num_hidden_layers=layers)
        if kinds is not None:
            config.layer_types = kinds
        return _few_layers(config, few)

    assert counts(12) is None
    assert counts(13) == (2, 3)
    assert counts(30, (["sliding_attention"] * 2 + ["full_attention"]) * 10) == (3, 6)
    assert counts(30, ["sliding_attention", "full_attention"] * 15) == (2, 4)
    assert counts(32, (["sliding_attention"] * 5 + ["full_attention"]) * 5 + ["sliding_attention"] * 2) == (6, 12)
    assert counts(13, ["full_attention"] * 12 + ["sliding_attention"]) is None  # no pattern repeats
    assert counts(3, few=2) is None  # the second simulation would already have all blocks
    assert counts(4, few=2) == (2, 3)


def test_a_deep_models_figures_are_extrapolated_from_two_small_ones() -> None:
    low = a_step(
        blocks=2, parts={"weights": 100, "loss": 9}, evaluation_parts={"weights": 50}, parameters=70, trained=8,
        forward_backward={"a": 4.0, "b": 1.0}, optimizer={"a": 2.0}, evaluation={"a": 1.0}, slack=5,
    )  # fmt: skip
    high = a_step(
        blocks=3, parts={"weights": 130, "loss": 9, "activations": 7}, evaluation_parts={"weights": 61},
        parameters=75, trained=10, forward_backward={"a": 6.0, "b": 1.0, "c": 0.5}, optimizer={"a": 3.0},
        evaluation={"a": 1.5}, slack=100,
    )  # fmt: skip
    deep = _extrapolated(low, low, high, 4.0, 6)
    assert deep.parts == {"weights": 220, "loss": 9, "activations": 28}
    assert deep.evaluation_parts == {"weights": 94}
    assert (deep.parameters, deep.trained, deep.blocks) == (90, 16, 6)
    assert deep.forward_backward == {"a": 12.0, "b": 1.0, "c": 2.0}
    assert (deep.optimizer, deep.evaluation) == ({"a": 6.0}, {"a": 3.0})
    assert deep.slack == round(100 * 2**0.65)
    assert (deep.packed, deep.largest, deep.is_transposed) == (low.packed, low.largest, low.is_transposed)
    beyond = _extrapolated(deep, low, high, 2.0, 6)
    assert beyond.parts == {"weights": 280, "loss": 9, "activations": 42}
    assert (beyond.parameters, beyond.forward_backward["a"], beyond.evaluation_parts["weights"]) == (100, 16.0, 116)


@pytest.mark.parametrize("checkpointed", [1, 3])
def test_extrapolation_matches_full_simulation_with_checkpointed_blocks(
    checkpointed: int, by_count: dict[int, Plan]
) -> None:
    plan = by_count[0]
    batch_plan = plan.batch_plan
    rows: Callable[..., Any] = lambda *_: (batch_plan.table, plan.largest_batch)  # noqa: E731
    extrapolated = step_of(batch_plan.recipe, rows, BF16, plan.device.simulate_allocator, checkpointed, few_layers=2)
    full = by_count[checkpointed].step
    assert (extrapolated.parameters, extrapolated.trained, extrapolated.blocks) == (full.parameters, full.trained, 4)
    assert sum(extrapolated.parts.values()) == pytest.approx(sum(full.parts.values()), rel=0.01)
    assert extrapolated.parts["activations"] == pytest.approx(full.parts["activations"], rel=0.03)
    counted = sum(extrapolated.forward_backward.values())
    assert counted == pytest.approx(sum(full.forward_backward.values()), rel=0.001)


def test_on_this_machine_available_memory_is_what_the_process_may_hold(deep: Path) -> None:
    plan = tunesmith.plan(str(deep), overrides=SHORT)
    assert plan.device.is_this_cpu
    assert plan.available == pytest.approx(available_memory(torch.device("cpu")), rel=0.2)
