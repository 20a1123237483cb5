"""Which weights are trained and at which rate, the layout of a run's batches, and activation checkpointing."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import config_of
from matrix import make_bases
from toy_loop import CPU
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, LlamaForCausalLM

from tunesmith.config.recipe import Recipe
from tunesmith.config.train import Train
from tunesmith.data.example import Source
from tunesmith.data.prepare import Prepared
from tunesmith.data.report import DataReport
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.batch_plan import SCORES, BatchPlan
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.memory import enable_activation_checkpointing, ran_out_of_memory, split_in_two
from tunesmith.engine.trainable import _check_head as check_head_of
from tunesmith.engine.trainable import (
    base_parameters,
    cap_max_length,
    from_output,
    is_hidden,
    learning_rates,
    trainable_model,
    with_known_features,
)
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.sequence_classification import class_logits
from tunesmith.models.architecture import blocks
from tunesmith.models.prompts import plain_model

LABELS = {"kind": "classification", "labels": ["no", "yes", "so"]}


def recipe_of(base: Path | str | dict[str, Any], method: Any, objective: Any = "instruction", **train: Any) -> Recipe:
    settings = {"steps": 1, "precision": "fp32", **train}
    values = {"base": base if isinstance(base, dict) else str(base), "data": {"train": "rows.jsonl"}}
    return Recipe.load({**values, "method": method, "objective": objective, "train": settings})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoder")
    make_bases(directory, ["bert"])
    return directory / "bert"


# Counts and rates


@pytest.mark.parametrize("weights", ["auto", "int8"])
@pytest.mark.parametrize("method", ["full", {"kind": "lora", "rank": 4}])
def test_base_parameters_are_counted_without_what_the_method_adds(tiny_model: Path, weights: str, method: Any) -> None:
    if weights == "int8" and method == "full":
        pytest.skip("quantized weights are frozen")
    model, _ = trainable_model(recipe_of({"path": str(tiny_model), "weights": weights}, method), torch.float32, CPU)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert base_parameters(model) == sum(parameter.numel() for parameter in base.parameters())


@pytest.mark.parametrize(
    ("method", "optimizer", "expected"),
    [
        ("full", "adamw", 8e-4),
        ("lora", "adamw", 5e-3),
        ("lora", "lion", 1e-3),
        ("full", "muon", 8e-4),
    ],
)
def test_a_methods_default_rate_is_multiplied_by_the_optimizers_factor(
    tiny_model: Path, method: str, optimizer: str, expected: float
) -> None:
    recipe = recipe_of(tiny_model, method, optimizer=optimizer)
    assert learning_rates(recipe, trainable_model(recipe, torch.float32, CPU)[0])[0] == expected


def test_a_new_head_has_its_own_learning_rate(bert: Path) -> None:
    recipe = recipe_of(bert, "lora", LABELS, layer_decay=0.5)
    model, _ = trainable_model(recipe, torch.float32, CPU)
    peak, factor = learning_rates(recipe, model)
    assert peak == pytest.approx(5e-3 * 0.3, rel=1e-12)  # one label per row
    rates = {name: peak * factor(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    head = {name: rate for name, rate in rates.items() if ".classifier." in name}
    assert len(head) == 2
    assert list(head.values()) == pytest.approx([0.02, 0.02])  # 8 / 32, at most 0.02
    body = {name: rate for name, rate in rates.items() if ".lora_" in name}
    for name, rate in body.items():
        assert rate == pytest.approx(peak * (0.5 if ".layer.1." in name else 0.25), rel=1e-12), name
    explicit = recipe_of(bert, "lora", {**LABELS, "head_learning_rate": 0.003}, learning_rate=0.01)
    peak, factor = learning_rates(explicit, model)
    assert (peak, peak * factor(next(iter(head)))) == pytest.approx((0.01, 0.003))


def test_only_the_last_layer_of_a_head_scales_its_rate_with_the_outputs(bert: Path) -> None:
    objective = {"kind": "regression", "mean": 5.0, "std": 40.0}
    recipe = recipe_of(bert, "full", objective)
    assert recipe.objective.output_scale == 40.0
    model, _ = trainable_model(recipe, torch.float32, CPU)
    peak, factor = learning_rates(recipe, model)
    assert peak == pytest.approx(8e-4 * 0.3 * recipe.objective.rate_factor, rel=0.05)
    scaled = {name for name, _ in model.named_parameters() if factor(name) > 1.5 * 0.02 / peak}
    assert scaled == {"classifier.weight", "classifier.bias"}
    assert factor("classifier.weight") * peak == pytest.approx(0.02 * 40.0, rel=1e-9)
    assert factor("bert.encoder.layer.0.output.dense.weight") == 1.0


def test_layer_decay_counts_blocks_through_the_decoder_and_then_the_encoder() -> None:
    model = AutoModelForSeq2SeqLM.from_config(config_of("t5"))
    distances = from_output(model)
    for part, expected in {
        "decoder.block.1.": 1,
        "decoder.block.0.": 2,
        "encoder.block.1.": 3,
        "encoder.block.0.": 4,
        "shared.": 5,
        "decoder.final_layer_norm.": 0,
    }.items():
        assert {distance for name, distance in distances.items() if name.startswith(part)} == {expected}, part
    hidden = is_hidden(model)
    assert hidden("encoder.block.0.layer.0.SelfAttention.q.weight")
    assert hidden("base_model.model.decoder.block.1.layer.0.SelfAttention.q.weight")
    assert not hidden("shared.weight")
    assert not hidden("decoder.final_layer_norm.weight")


def test_each_parameter_keeps_its_rate_factor_and_weight_decay() -> None:
    """With parameters of several sizes and settings, mixed in the model's order."""
    torch.manual_seed(0)
    names = ["a", "b", "c", "d", "e"]
    shapes: list[tuple[int, ...]] = [(3, 2), (4,), (2, 5), (6,), (2, 2)]
    factors = {"a": 1.0, "b": 3.0, "c": 3.0, "d": 1.0, "e": 0.5}
    parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in zip(names, shapes, strict=True)}
    parameters["c"].requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    train = Train(steps=1, betas=(0.0, 0.9), eps=1e6, weight_decay=0.2)
    masters = MasterWeights(parameters.items(), train, factors.__getitem__)
    assert sorted(masters.names) == ["a", "b", "d", "e"]
    loss = sum((number + 1) * parameters[name].sum() for number, name in enumerate("abde"))
    loss.backward()
    masters.step(0.5, 2, 1e9)
    for number, name in enumerate("abde"):
        rate = 0.5 * factors[name]
        decayed = before[name] * (1 - rate * (0.2 if before[name].ndim == 2 else 0.0))
        torch.testing.assert_close(parameters[name].detach(), decayed - rate * (number + 1) / 2 / 1e6, msg=name)
    unrounded = masters.unrounded()
    assert {name: master.shape for name, master in unrounded.items()} == {
        name: before[name].shape for name in ("a", "b", "d", "e")
    }
    assert torch.equal(parameters["c"].detach(), before["c"])


def test_parameters_are_views_of_the_masters_in_fp32_and_copies_in_bf16() -> None:
    layer = torch.nn.Linear(3, 2)
    masters = MasterWeights(layer.named_parameters(), Train(steps=1))
    for name, view in masters.unrounded().items():
        assert layer.get_parameter(name).data_ptr() == view.data_ptr()
    with torch.no_grad():
        layer.weight.fill_(4.0)
    assert masters.unrounded()["weight"].eq(4.0).all()
    low = torch.nn.Linear(3, 2).bfloat16()
    masters = MasterWeights(low.named_parameters(), Train(steps=1))
    with torch.no_grad():
        masters.flat.fill_(1 / 3)
    masters.publish()
    assert low.weight.dtype == torch.bfloat16
    assert low.weight.eq(torch.tensor(1 / 3).bfloat16()).all()
    masters.finish()
    assert (masters.rules, masters.average, len(masters.grad)) == ([], None, 0)
    low(torch.ones(1, 3).bfloat16()).sum().backward()
    assert low.weight.grad is not None  # the hook that frees it has been removed


# The head's check


class Broken(LlamaForCausalLM):
    """Its forward pass fails."""

    def forward(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no such product\nsecond line")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_family_that_fails_in_the_given_precision_is_refused_by_name(tiny_model: Path, dtype: torch.dtype) -> None:
    model = Broken.from_pretrained(tiny_model, dtype=dtype)
    error, message = (
        (UserError, r"Broken's own forward pass fails in bfloat16 \(no such product\)\. Set train\.precision: fp32\.")
        if dtype == torch.bfloat16
        else (RuntimeError, "no such product\nsecond line")
    )
    with pytest.raises(error, match=message):
        check_head_of(CausalLMHead(), model)


def test_neftune_is_refused_if_the_method_makes_its_own_embeddings(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"train.neftune_alpha: prompt makes its own embeddings"):
        trainable_model(recipe_of(tiny_model, "prompt", neftune_alpha=5.0), torch.float32, CPU)
    trainable_model(recipe_of(tiny_model, "prefix", neftune_alpha=5.0), torch.float32, CPU)


# Positions


@pytest.fixture
def few_positions(tmp_path: Path, tiny_model: Path) -> Path:
    """A GPT-2 with 48 learned positions."""
    GPT2Config(n_embd=8, n_layer=1, n_head=1, n_positions=48, vocab_size=261).save_pretrained(tmp_path / "gpt2")
    for file in tiny_model.glob("token*"):
        shutil.copy(file, tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_max_length_is_capped_by_positions_minus_virtual_tokens(few_positions: Path) -> None:
    recipe = recipe_of(few_positions, "lora")
    assert cap_max_length(recipe).data.max_length == 48
    prompt = recipe_of(few_positions, {"kind": "prompt", "tokens": 20})
    assert cap_max_length(prompt).data.max_length == 28

    def with_max_length(method: Any, length: int) -> Recipe:
        data = {"train": "rows.jsonl", "max_length": length}
        return Recipe.load({"base": str(few_positions), "data": data, "method": method})

    assert cap_max_length(with_max_length("lora", 48)).data.max_length == 48
    with pytest.raises(UserError, match=r"data\.max_length: 49 tokens are more than the 48 .* data\.max_length: 48\."):
        cap_max_length(with_max_length("lora", 49))
    with pytest.raises(UserError, match=r"29 tokens plus the method's 20 virtual tokens are .*data\.max_length: 28\."):
        cap_max_length(with_max_length({"kind": "prompt", "tokens": 20}, 29))


def test_max_length_is_not_capped_without_learned_positions(tiny_model: Path) -> None:
    recipe = Recipe.load({"base": str(tiny_model), "data": {"train": "rows.jsonl", "max_length": 5000}})
    assert cap_max_length(recipe) is recipe


# Known features


def test_features_of_a_frozen_body_are_computed_once_for_both_tables(bert: Path) -> None:
    def table_of(count: int) -> TokenTable:
        rows = []
        for number in range(count):
            ids = np.arange(5, 9 + number % 5).astype(np.int32)
            rows.append((ids, np.arange(len(ids)) == len(ids) - 1, Source("rows", number + 1), (number % 3,)))
        return TokenTable.build(rows)

    prepared = Prepared(table_of(7), table_of(3), DataReport(), {})
    recipe = recipe_of(bert, {"kind": "layers", "last": 0, "head": False}, LABELS)
    model, _ = trainable_model(recipe, torch.float32, CPU)
    model.train()
    known = with_known_features(recipe.objective.head, model, prepared, recipe.train.max_batch_tokens)
    assert (known.train.features.shape, known.held_out.features.shape) == ((7, 32), (3, 32))
    from tunesmith.data.batch import collate

    model.eval()
    for with_features, plain in ((known.train, prepared.train), (known.held_out, prepared.held_out)):
        rows = list(range(len(plain)))
        actual, expected = (class_logits(model, collate(table, rows)) for table in (with_features, plain))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    lora = recipe_of(bert, "lora", LABELS)
    assert (
        with_known_features(lora.objective.head, trainable_model(lora, torch.float32, CPU)[0], prepared, 64) is prepared
    )


# The layout of batches


def batch_plan(lengths: list[int], known: bool = True, **train: Any) -> BatchPlan:
    rows = [
        (np.zeros(length, np.int32), np.ones(length, np.bool_), Source("rows", number + 1))
        for number, length in enumerate(lengths)
    ]
    recipe = Recipe.load({"data": {"train": "rows.jsonl"}, "train": {"shuffle": False, **train}})
    return BatchPlan(recipe, TokenTable.build(rows), recipe.train.max_batch_tokens, known=known)


def test_the_largest_batch_is_found_by_tokens_and_by_attention_scores() -> None:
    lengths = [100, 100, 100, 90, 90, 110, 25, 285, 300, 5]
    layout = batch_plan(lengths, steps=5, tokens_per_step=310, tokens_per_batch=310).layout(True)
    assert [rows for step in range(5) for rows in layout.batches.step(step)] == [
        [0, 1, 2], [3, 4, 5], [6, 7], [8, 9], [0, 1, 2]
    ]  # fmt: skip
    assert layout.largest_batch == [6, 7]  # 310 tokens
    assert layout.largest_by_scores == [8, 9]  # 305 + (300² + 5²) / 768 is more than 310 + (25² + 285²) / 768
    assert (layout.largest_of(False), layout.largest_of(True)) == ([6, 7], [8, 9])
    assert layout.widths == {3}
    assert layout.steps == 5
    assert SCORES == 768


def test_completions_that_cannot_share_their_prompt_count_with_a_copy_of_it() -> None:
    """Two batches of 100 tokens: one row of a long prompt and four completions, and two rows of two completions."""
    rows = []
    for number, lengths in enumerate(((60, 10, 10, 10, 10), (10, 20, 20), (10, 20, 20)), 1):
        at = np.arange(sum(lengths))
        scores = (0.0,) * (len(lengths) - 1)
        rows.append((np.zeros(len(at), np.int32), at >= lengths[0], Source("rows", number), None, (lengths, scores)))
    found = {}
    for method in ("lora", "prefix", "prompt", "ptuning"):
        recipe = Recipe.load(
            {
                "data": {"train": "rows.jsonl"},
                "objective": "dpo",
                "method": method,
                "train": {"shuffle": False, "steps": 2, "tokens_per_step": 100},
            }
        )
        plan = BatchPlan(recipe, TokenTable.build(reversed(rows)), 100)
        assert [plan.layout(True).batches.step(step) for step in range(2)] == [[[0, 1]], [[2]]]
        found[method] = [plan.layout(packed).largest_batch for packed in (True, False)]
    assert found["lora"] == found["prefix"] == [[0, 1], [2]]  # 100 tokens each, so the first; 4 × 70 with copies
    assert found["prompt"] == found["ptuning"] == [[2], [2]]


def test_padded_batches_are_as_wide_as_their_longest_row() -> None:
    lengths = [40, 10, 10, 10, 90, 200, 60, 60, 60]
    layout = batch_plan(lengths, steps=5, tokens_per_step=70, tokens_per_batch=200).layout(False)
    assert [rows for step in range(5) for rows in layout.batches.step(step)] == [
        [0, 1, 2, 3], [4], [5], [6, 7, 8], [0, 1, 2, 3]
    ]  # fmt: skip
    assert layout.batches.padded
    assert layout.largest_batch == [5]
    assert layout.widths == {1, 2}
    two = batch_plan([60, 50, 100, 9], steps=2, tokens_per_step=120, tokens_per_batch=120).layout(False)
    assert two.largest_batch == two.largest_by_scores == [0, 1]  # 120 wide by padding, of two rows
    three = batch_plan([60, 60, 118], steps=2, tokens_per_step=120, tokens_per_batch=120).layout(False)
    assert three.largest_batch == [0, 1]
    assert three.largest_by_scores == [2]  # 118 + 118² / 768 is more than 120 + 2 · 60² / 768


def test_a_layout_is_cached_per_packing_and_per_table() -> None:
    plan = batch_plan([30, 40, 50], epochs=2.0)
    assert plan.layout(True) is plan.layout(True)
    assert plan.layout(False) is not plan.layout(True)
    assert plan.over(plan.table) is plan
    other = batch_plan([30, 40, 50]).table
    again = plan.over(other)
    assert (again.table is other, again.tokens_per_batch) == (True, plan.tokens_per_batch)
    assert again.layout(True).batches.table is other
    assert plan.longest == 50
    assert plan.known
    assert BatchPlan.of(plan.recipe, other).tokens_per_batch == 2048


def test_a_layout_takes_all_its_settings_from_the_recipe() -> None:
    rows = [(np.zeros(30, np.int32), np.ones(30, np.bool_), Source("rows", number + 1)) for number in range(20)]
    data = {"train": "rows.jsonl", "pack": False}
    recipe = Recipe.load({"data": data, "train": {"steps": 2, "tokens_per_step": 90, "seed": 3}})
    batches = BatchPlan.of(recipe, TokenTable.build(rows)).layout(True).batches
    order = np.arange(20)
    np.random.default_rng([3, 0]).shuffle(order)
    assert batches.step(0) == [[row] for row in order[:3].tolist()]
    assert batches.step(1) == [[row] for row in order[3:6].tolist()]


# Memory


@pytest.mark.parametrize("first", [0, 1, 2])
def test_only_the_first_blocks_are_recomputed(tiny_model: Path, first: int) -> None:
    recipe = recipe_of(tiny_model, "full")
    model, _ = trainable_model(recipe, torch.float32, CPU)
    model.train()
    enable_activation_checkpointing(model, first)
    calls = [0, 0]
    for index, block in enumerate(blocks(plain_model(model))):

        def count(*_: Any, index: int = index) -> None:
            calls[index] += 1

        block.self_attn.register_forward_pre_hook(count)
    ids = torch.arange(20)[None]
    inputs = {"input_ids": ids, "position_ids": ids, "document_lengths": [20], "use_cache": False}
    model(**inputs).logits.sum().backward()
    assert calls == [2 if index < first else 1 for index in range(2)]


def test_a_model_without_activation_checkpointing_is_refused() -> None:
    class Fixed(SimpleNamespace):
        supports_gradient_checkpointing = False

    with pytest.raises(UserError, match=r"Fixed does not support activation checkpointing"):
        enable_activation_checkpointing(Fixed(), 1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_out_of_memory_is_distinguished_from_other_errors(error: BaseException, expected: bool) -> None:
    assert ran_out_of_memory(error) == expected


@pytest.mark.parametrize(
    ("lengths", "first"),
    [([10, 10, 20], 2), ([100, 1], 1), ([1, 100], 1), ([1, 1, 100], 2), ([5, 5, 5, 5], 2), ([5, 5, 5], 2), ([9], 1)],
)
def test_rows_are_split_at_half_their_tokens_with_no_empty_part(lengths: list[int], first: int) -> None:
    rows = [30 + number for number in range(len(lengths))]
    assert split_in_two(rows, lengths) == (rows[:first], rows[first:])
    assert math.isfinite(first)


# What samples itself


GRPO: dict[str, Any] = {"kind": "grpo", "rewards": ["exact"]}


def stored_gpt2_with_dropout(directory: Path) -> Path:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, bos_token_id=1, eos_token_id=1)
    config.resid_pdrop = config.attn_pdrop = 0.5
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def test_dropout_is_off_where_a_model_learns_from_its_samples(tmp_path: Path) -> None:
    base = stored_gpt2_with_dropout(tmp_path)
    ids = torch.arange(8)[None]
    inputs = {"input_ids": ids, "position_ids": ids, "document_lengths": [8]}
    same = []
    for objective in (GRPO, "instruction"):
        model, _ = trainable_model(recipe_of(base, "lora", objective), torch.float32, CPU)
        same.append(torch.equal(*(model.train()(**inputs).logits for _ in range(2))))
    assert same == [True, False]


@pytest.mark.parametrize(
    ("method", "train", "named"),
    [
        ("lora", {"neftune_alpha": 5.0}, "train.neftune_alpha: 5"),
        ({"kind": "lora", "dropout": 0.1}, {}, "method.dropout"),
    ],
)
def test_noise_is_refused_where_a_model_learns_from_its_samples(
    tmp_path: Path, method: Any, train: dict[str, Any], named: str
) -> None:
    base = stored_gpt2_with_dropout(tmp_path)
    with pytest.raises(UserError, match=f"{named}.* learns from its samples"):
        trainable_model(recipe_of(base, method, GRPO, **train), torch.float32, CPU)
