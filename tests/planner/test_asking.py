"""From what a person asks to what is planned: recipes, precisions, rows that are not there, and what is given up."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import CPU_HERE, GPU, a_recipe, a_step
from transformers import BertConfig, LlamaConfig

import tunesmith
from tunesmith.config.recipe import Base, Recipe
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.precision import dtype_of
from tunesmith.errors import UserError
from tunesmith.planner import ask, fitting
from tunesmith.planner.ask import (
    NO_ROWS,
    USUAL,
    _ladder,
    batch_plan_of,
    best_that_fits,
    cards_needed,
    on_devices,
    precision,
    recipe_of,
    usual_plans,
)
from tunesmith.planner.device import Device, known_devices
from tunesmith.planner.fitting import LEAST_TOKENS, MARGIN, _between, _halved, plan_within, refusal
from tunesmith.planner.measure import available_memory
from tunesmith.planner.plan import Plan, plan_run
from tunesmith.planner.shapes import HERE, shown_name, with_known_shape
from tunesmith.planner.step import _along, _few_layers, rows_like, step_of

BF16, FP32 = torch.bfloat16, torch.float32


BARE = replace(GPU, kind="mps", program_bytes=0)
"""A device that holds nothing else, whose allocator counts in bytes and not in segments."""


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
def remembered() -> Iterator[None]:
    """A plan of the same run on the same device is made once in this file; what is available is its own."""
    known: dict[Any, Plan] = {}

    def once(
        batch_plan: BatchPlan,
        dtype: torch.dtype,
        device: Device,
        available: int | None = None,
        twice: int | None = None,
    ) -> Plan:
        asked = (
            batch_plan.recipe.model_dump_json(),
            batch_plan.tokens_per_batch,
            tuple(batch_plan.table.lengths.tolist()),
        )
        key = (*asked, batch_plan.known, dtype, device.name, device.kind, device.program_bytes, twice)
        if key not in known:
            known[key] = plan_run(batch_plan, dtype, device, None, twice)
        return replace(known[key], available=device.memory_bytes if available is None else available)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "plan_run", once)
        patch.setattr(ask, "plan_run", once)
        yield


# --- the recipe that is planned ---------------------------------------------------------------------------------------


def test_a_recipe_is_planned_with_the_base_rows_and_fields_that_were_named(tmp_path: Path) -> None:
    written = tmp_path / "recipe.yaml"
    written.write_text("base: embedded\ndata: {train: own.jsonl, max_length: 77}\nmethod: ia3\n", encoding="utf-8")
    asked = recipe_of("gpt2", written, "other.jsonl", ["train.steps=9"])
    assert asked.base.path == str(HERE / "gpt2")
    assert asked.data.train == ["other.jsonl"]
    assert (asked.data.max_length, asked.method.kind, asked.train.steps) == (77, "ia3", 9)
    kept = recipe_of(None, written, None, [])
    assert kept.base.path == "embedded"
    assert kept.data.train[0].endswith("own.jsonl")
    assert recipe_of("gpt2", None, None, []).data.train == [NO_ROWS]
    with pytest.raises(UserError, match="Name a base"):
        recipe_of(None, None, None, [])


def test_a_shape_is_shown_by_its_short_name_and_a_path_as_it_is() -> None:
    assert shown_name(str(HERE / "gpt2-xl")) == "gpt2-xl"
    assert shown_name("/models/gpt2-xl") == "/models/gpt2-xl"
    assert with_known_shape(Base(path="META-LLAMA/Llama-2-7b-hf")).path == str(HERE / "llama-2-7b")
    assert with_known_shape(Base(path="llama-2-7b-other")).path == "llama-2-7b-other"


def test_auto_is_the_precision_of_the_device_and_another_is_the_recipes() -> None:
    auto = a_recipe()
    assert precision(auto, GPU) == BF16
    assert precision(auto, replace(GPU, flops={"fp32": 1e12})) == FP32
    assert precision(auto, CPU_HERE) == dtype_of("auto", torch.device("cpu"))
    assert precision(a_recipe(train={"precision": "fp32"}), GPU) == FP32
    assert precision(a_recipe(train={"precision": "bf16"}), CPU_HERE) == BF16
    assert precision(a_recipe({"path": "embedded", "weights": "fp32"}), GPU) == FP32


# --- rows that stand for others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "lengths", "steps", "known"),
    [
        pytest.param({}, [1024] * 2, 1, False, id="a step of the longest"),
        pytest.param({"data.max_length": 300}, [300] * 7, 1, False, id="the last row is over the step"),
        pytest.param({"train.tokens_per_step": 500}, [500], 1, False, id="a row is no longer than a step"),
        pytest.param({"train.steps": 40}, [1024] * 2, 40, True, id="steps that were asked for are known"),
    ],
)
def test_without_rows_a_step_of_the_longest_stands_for_them(
    settings: dict[str, Any], lengths: list[int], steps: int, known: bool, deep: Path
) -> None:
    asked = recipe_of(str(deep), None, None, [f"{name}={value}" for name, value in settings.items()])
    batch_plan = batch_plan_of(asked)
    assert batch_plan.table.lengths.tolist() == lengths
    assert batch_plan.table.loss_mask.all()
    assert (batch_plan.recipe.train.steps, batch_plan.recipe.train.epochs, batch_plan.known) == (steps, None, known)


def test_rows_are_four_characters_a_token_within_the_longest_where_there_is_no_tokenizer(
    deep: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    chats = [("a" * 10, "b" * 7), ("a" * 10, "b" * 6), ("a", "b"), ("a" * 400, "b" * 400)]
    lines = [json.dumps({"question": asked, "answer": answer}) for asked, answer in chats]
    rows.write_text("\n".join(lines), encoding="utf-8")
    asked = recipe_of(str(deep), None, str(rows), ["data.max_length=100", "data.held_out=0", "objective=instruction"])
    batch_plan = batch_plan_of(asked)
    assert batch_plan.table.lengths.tolist() == [ceil(17 / 4), 4, 2, 100]
    assert batch_plan.known
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "c" * 41}), encoding="utf-8")
    asked = recipe_of(str(deep), None, str(texts), ["objective=text", "data.held_out=0"])
    assert batch_plan_of(asked).table.lengths.tolist() == [11]


def test_rows_that_stand_for_others_are_learnt_as_the_objective_learns() -> None:
    written = rows_like(a_recipe(), [5, 3])
    assert (written.lengths.tolist(), written.loss_mask.tolist(), written.targets) == ([5, 3], [True] * 8, None)
    for objective, values in (
        ({"kind": "classification", "labels": ["a", "b", "c"]}, 1),
        ({"kind": "multi_label", "labels": ["a", "b", "c"]}, 3),
        ({"kind": "regression"}, 1),
    ):
        told = rows_like(a_recipe(objective=objective), [4, 2])
        assert told.loss_mask.tolist() == [False, False, False, True, False, True]
        assert [told.targets_of(row).tolist() for row in range(2)] == [[0.0] * values] * 2
        assert told.ids.dtype == np.int32
    with pytest.raises(UserError, match=r"objective: token_classification: its plan needs rows\. Give data.train"):
        rows_like(a_recipe(objective={"kind": "token_classification", "labels": ["a"]}), [4])


# --- what is given up -------------------------------------------------------------------------------------------------


def steps_down(recipe: Recipe) -> list[tuple[str, str, int, list[str]]]:
    return [(each.method.kind, each.base.weights, each.data.max_length, how) for each, _, how in _ladder(recipe)]


def test_what_is_given_up_comes_in_order_each_on_top_of_the_last() -> None:
    whole = a_recipe(method="full", data={"train": "rows.jsonl", "max_length": 1100})
    assert steps_down(whole) == [
        ("full", "auto", 1100, []),
        ("lora", "auto", 1100, ["method=lora"]),
        ("lora", "nf4", 1100, ["base.weights=nf4"]),
        ("lora", "nf4", 550, ["data.max_length=550"]),
        ("lora", "nf4", 275, ["data.max_length=275"]),
        ("lora", "nf4", 137, ["data.max_length=137"]),
    ]
    told = [told for _, told, _ in _ladder(whole)]
    assert told[3] == ["rows of at most 550 tokens"]
    assert [len(each) for each in told] == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("parts", "kinds"),
    [
        pytest.param({"method": {"kind": "layers", "last": 1}}, [("layers", "auto"), ("lora", "auto")], id="layers"),
        pytest.param({"method": "ia3"}, [("ia3", "auto"), ("ia3", "nf4")], id="a method of its own weights stays"),
        pytest.param({"base": {"path": "embedded", "weights": "int8"}}, [("lora", "int8")], id="quantized already"),
    ],
)
def test_only_what_is_still_there_is_given_up(parts: dict[str, Any], kinds: list[tuple[str, str]]) -> None:
    base = parts.pop("base", "embedded")
    recipe = a_recipe(base, data={"train": "rows.jsonl", "max_length": 256}, **parts)
    found = [(kind, weights) for kind, weights, _, _ in steps_down(recipe)]
    assert found[: len(kinds)] == kinds
    assert len(found) == len(kinds) + (kinds[-1] == ("lora", "auto"))


def test_what_fits_says_what_turns_the_recipe_into_it(deep: Path) -> None:
    settings = ["method=ia3", "data.max_length=256", "train.tokens_per_step=512"]
    asked = recipe_of(str(deep), None, None, settings)
    usual = ask.plan_run(batch_plan_of(asked), BF16, BARE).memory.peak_bytes
    found = best_that_fits(asked, BARE, ceil((usual + 1) * MARGIN))
    assert (found.given_up, found.overrides, found.plan.checkpointed) == ((), (), 0)
    limit = ceil(usual * 0.8)
    low = best_that_fits(asked, BARE, limit)
    again = recipe_of(str(deep), None, None, [*settings, *low.overrides])
    assert low.plan.memory.peak_bytes * MARGIN <= limit + MARGIN
    assert low.plan.checkpointed > 0
    assert f"{low.plan.checkpointed} of 4 blocks are computed twice: up to a third more time" in low.given_up
    assert again.base.weights == low.plan.batch_plan.recipe.base.weights
    assert again.train.tokens_at_once == low.plan.batch_plan.tokens_per_batch
    assert again.train.memory_limit == f"{limit / 1e9:.4g}GB"
    tokens = low.plan.batch_plan.tokens_per_batch
    assert (f"{tokens:,} tokens go at once in place of 512" in low.given_up) == (tokens < 512)
    with pytest.raises(UserError, match=r"^0\.0 GB hold no recipe for .*Take a smaller base\.$"):
        best_that_fits(asked, BARE, 1_000)


# --- within a limit ---------------------------------------------------------------------------------------------------


def test_tokens_are_halved_down_to_the_longest_row() -> None:
    assert list(_halved(2048, 300)) == [2048, 1024, 512, 300]
    assert list(_halved(2048, 512)) == [2048, 1024, 512]
    assert list(_halved(100, 300)) == [100]
    assert LEAST_TOKENS == 128


@pytest.fixture(scope="module")
def by_count(deep: Path) -> dict[int, Plan]:
    """The same run with each number of blocks computed twice, on a device that holds nothing else."""
    settings = ["method=ia3", "data.max_length=512", "train.tokens_per_step=1024"]
    batch_plan = batch_plan_of(recipe_of(str(deep), None, None, settings))
    return {count: ask.plan_run(batch_plan, BF16, BARE, None, count) for count in range(5)}


def test_as_few_blocks_are_computed_twice_as_fit(by_count: dict[int, Plan]) -> None:
    peaks = [by_count[count].memory.peak_bytes for count in range(5)]
    assert peaks[0] > peaks[2] > peaks[4]
    once, twice = by_count[0], by_count[4]
    for room in (peaks[1], peaks[2], peaks[3], peaks[2] - 1, peaks[0] - 1):
        found = _between(replace(once, available=room), replace(twice, available=room), BF16)
        # sought from where the straight line between none and all crosses the limit
        first = max(1, ceil((peaks[0] - room) / (peaks[0] - peaks[4]) * 4))
        assert found.checkpointed == next(count for count in range(first, 5) if peaks[count] <= room), room
        assert found.fits
    none = replace(twice, available=peaks[4] - 1)
    assert _between(replace(once, available=peaks[4] - 1), none, BF16) is none


def test_a_limit_leaves_a_twentieth_and_is_met_by_blocks_before_tokens(by_count: dict[int, Plan]) -> None:
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


def test_what_does_not_fit_is_refused_with_what_would(by_count: dict[int, Plan]) -> None:
    batch_plan = by_count[0].batch_plan
    base = batch_plan.recipe.base.path
    least = fitting.plan_run(replace(batch_plan, tokens_per_batch=512), BF16, BARE, None, 4).memory.peak_bytes
    with pytest.raises(UserError) as refused:
        plan_within(batch_plan, BF16, BARE, 1_000)
    said = str(refused.value)
    assert said.startswith(
        "train.memory_limit: 0.00 GB are too few: 512 tokens at once (the longest row has 512) take "
    )
    assert f"take {least * 1.05 / 1e9:.2f} GB with every block computed twice" in said
    assert f"Set memory_limit: {ceil(least * 1.05 / 1e8) / 10:.1f}GB, data.max_length lower" in said
    none = refusal(replace(by_count[0], available=1_000), BF16)
    assert none.startswith(f"base: {base}: 0.0 GB are needed and 0.0 GB are free. What fits: tunesmith plan {base} ")
    assert "--fit 0.0GB. Or set base.weights: nf4" in none
    near = replace(by_count[0], available=round(by_count[0].memory.peak_bytes * 0.999))
    found = plan_within(batch_plan, BF16, BARE, near.available)
    assert f"{found.checkpointed} of 4 blocks are computed twice, 1,024 tokens at once, in 0.0 GB." in refusal(
        near, BF16
    )


# --- on other devices -------------------------------------------------------------------------------------------------


SHORT = ["method=ia3", "data.max_length=32", "train.tokens_per_step=64"]


def test_on_every_device_the_plan_is_its_own(tiny_model: Path) -> None:
    found = {each.device.name: each for each in on_devices(recipe_of(str(tiny_model), None, None, SHORT))}
    assert list(found) == list(known_devices())
    for name in ("l4", "t4", "m4-24gb"):
        own = tunesmith.plan(str(tiny_model), overrides=SHORT, device=name)
        assert found[name].plan.memory == own.memory, name
        assert found[name].plan.dtype == (FP32 if name == "t4" else BF16)
        assert found[name].plan.available == known_devices()[name].memory_bytes
        assert found[name].cards == cards_needed(own) == 1


@pytest.mark.long
def test_usual_plans_are_of_every_method_and_weights(tiny_model: Path) -> None:
    found = usual_plans(recipe_of(str(tiny_model), None, None, SHORT[1:]), GPU)
    assert list(found) == list(USUAL)
    for name, plan in found.items():
        assert isinstance(plan, Plan), name
        assert plan.batch_plan.recipe.method.kind == USUAL[name]["method"]
        assert plan.batch_plan.recipe.base.weights == USUAL[name].get("base.weights", "auto")
        assert plan.available == GPU.memory_bytes


def test_usual_plans_of_a_base_that_the_objective_is_not_for_are_refused_once(tmp_path: Path) -> None:
    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=300).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is an encoder, which reads; objective: instruction is for a decoder"):
        usual_plans(recipe_of(str(tmp_path), None, None, []), GPU)


# --- the line through few blocks --------------------------------------------------------------------------------------


def test_deep_models_are_carried_out_in_whole_repetitions_of_their_pattern() -> None:
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
    assert counts(3, few=2) is None  # the line would end at all of them
    assert counts(4, few=2) == (2, 3)


def test_a_deep_models_figures_lie_on_the_line_through_two_small_ones() -> None:
    low = a_step(blocks=2, parts={"weights": 100, "loss": 9}, evaluating={"weights": 50}, parameters=70, trained=8,
                 learning={"a": 4.0, "b": 1.0}, updating={"a": 2.0}, judging={"a": 1.0}, slack=5)  # fmt: skip
    high = a_step(blocks=3, parts={"weights": 130, "loss": 9, "activations": 7}, evaluating={"weights": 61},
                  parameters=75, trained=10, learning={"a": 6.0, "b": 1.0, "c": 0.5}, updating={"a": 3.0},
                  judging={"a": 1.5}, slack=100)  # fmt: skip
    found = _along(low, low, high, 4.0, 6)
    assert found.parts == {"weights": 220, "loss": 9, "activations": 28}
    assert found.evaluating == {"weights": 94}
    assert (found.parameters, found.trained, found.blocks) == (90, 16, 6)
    assert found.learning == {"a": 12.0, "b": 1.0, "c": 2.0}
    assert (found.updating, found.judging) == ({"a": 6.0}, {"a": 3.0})
    assert found.slack == round(100 * 2**0.65)
    assert (found.packed, found.largest, found.turned) == (low.packed, low.largest, low.turned)
    beyond = _along(found, low, high, 2.0, 6)
    assert beyond.parts == {"weights": 280, "loss": 9, "activations": 42}
    assert (beyond.parameters, beyond.learning["a"], beyond.evaluating["weights"]) == (100, 16.0, 116)


@pytest.mark.parametrize("checkpointed", [1, 3])
def test_blocks_read_off_a_line_are_those_carried_out_however_many_are_computed_twice(
    checkpointed: int, by_count: dict[int, Plan]
) -> None:
    plan = by_count[0]
    batch_plan = plan.batch_plan
    rows: Callable[..., Any] = lambda *_: (batch_plan.table, plan.largest_batch)  # noqa: E731
    along = step_of(batch_plan.recipe, rows, BF16, plan.device.holds, checkpointed, few_layers=2)
    whole = by_count[checkpointed].step
    assert (along.parameters, along.trained, along.blocks) == (whole.parameters, whole.trained, 4)
    assert sum(along.parts.values()) == pytest.approx(sum(whole.parts.values()), rel=0.01)
    assert along.parts["activations"] == pytest.approx(whole.parts["activations"], rel=0.03)
    assert sum(along.learning.values()) == pytest.approx(sum(whole.learning.values()), rel=0.001)


def test_a_plan_here_takes_no_more_than_this_process_may_hold(deep: Path) -> None:
    plan = tunesmith.plan(str(deep), overrides=SHORT)
    assert plan.device.is_this_cpu
    assert plan.available == pytest.approx(available_memory(torch.device("cpu")), rel=0.2)
