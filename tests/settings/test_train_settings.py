"""Every field of `train` does what its description says, compared with formulas and with libraries."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from peft import LoraConfig, get_peft_model
from settings_coverage import shows
from small_models import TwoLayers
from torch import nn
from toy_loop import SquaredErrors, descent, loop_over, named, weight_of
from toy_loop import table_of as table_of_points
from transformers import (
    AutoModelForCausalLM,
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)
from transformers.optimization import Adafactor

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.config.train import Train
from tunesmith.data.batch import collate
from tunesmith.data.example import Source
from tunesmith.data.pack import Batches
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.evaluations import Evaluations
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.schedule import learning_rate
from tunesmith.engine.trainable import learning_rates, trainable_model
from tunesmith.errors import UserError
from tunesmith.models.architecture import blocks
from tunesmith.models.precision import bf16_speedup, device_of, dtype_of
from tunesmith.models.prompts import plain_model
from tunesmith.models.quiet import quiet_peft
from tunesmith.planner.device import this_device
from tunesmith.planner.fitting import plan_within
from tunesmith.planner.plan import plan_run
from tunesmith.run import Event, Run

CPU = torch.device("cpu")


def table_of(lengths: list[int]) -> TokenTable:
    """Rows of random ids; the second half of each row has a loss."""
    generator = np.random.default_rng(0)
    rows = []
    for number, length in enumerate(lengths):
        ids = generator.integers(0, 250, length).astype(np.int32)
        rows.append((ids, np.arange(length) >= length // 2, Source("rows", number + 1)))
    return TokenTable.build(rows)


LENGTHS = np.random.default_rng(1).integers(20, 61, 400).tolist()
"""40 tokens on average."""


def recipe_of(tiny_model: Path, method: Any = "full", data: dict[str, Any] | None = None, **train: Any) -> Recipe:
    settings = {"steps": 1, "precision": "fp32", **train}
    return Recipe.load(
        {"base": str(tiny_model), "data": {"train": "rows.jsonl", **(data or {})}, "method": method, "train": settings}
    )


def batches_of(lengths: list[int] = LENGTHS, pack: bool = True, **train: Any) -> tuple[Batches, int]:
    """The batches and the number of steps of a run over rows of these lengths."""
    recipe = Recipe.load({"data": {"train": "rows.jsonl", "pack": pack}, "train": train})
    layout = BatchPlan.of(recipe, table_of(lengths)).layout(True)
    return layout.batches, layout.steps


def rows_of(batches: Batches, first: int, last: int) -> list[int]:
    """All rows of the steps first … last − 1, in order."""
    return [row for step in range(first, last) for rows in batches.step(step) for row in rows]


# How long


@shows("train.steps")
@pytest.mark.parametrize("steps", [3, 777])
def test_steps_is_the_number_of_steps_for_any_data(steps: int) -> None:
    assert batches_of(steps=steps)[1] == steps


@shows("train.epochs")
def test_epochs_counts_passes_over_the_rows_also_fractions() -> None:
    batches, steps = batches_of(epochs=2.5, tokens_per_step=300)
    sizes = [len(batches.epoch(epoch)) for epoch in range(3)]
    assert steps == sizes[0] + sizes[1] + round(sizes[2] / 2)
    seen = rows_of(batches, 0, sizes[0] + sizes[1])
    assert np.bincount(seen).tolist() == [2] * 400
    assert batches_of(epochs=2, tokens_per_step=300)[1] == sizes[0] + sizes[1]


@shows("train.epochs", "train.steps")
def test_three_epochs_are_the_default_without_steps_and_epochs() -> None:
    batches, steps = batches_of(tokens_per_step=300)
    assert np.bincount(rows_of(batches, 0, steps)).tolist() == [3] * 400
    with pytest.raises(UserError, match="set steps or epochs, not both"):
        batches_of(steps=3, epochs=2)


# Tokens per step and batch


@shows("train.tokens_per_step")
@pytest.mark.parametrize(("target", "pack"), [(700, True), (330, True), (330, False), (1999, False)])
def test_a_step_has_tokens_per_step_to_within_half_a_batch(target: int, pack: bool) -> None:
    batches, steps = batches_of(LENGTHS * 5, pack, epochs=2, tokens_per_step=target, tokens_per_batch=120)
    most = 120 if pack else max(LENGTHS)  # tokens of the largest batch
    last = {len(batches.epoch(0)) - 1, steps - 1}  # the rest of an epoch is a step of its own
    sizes = [batches.tokens_in(step, step + 1) for step in range(steps) if step not in last]
    assert all(abs(size - target) <= most / 2 for size in sizes)
    assert np.mean(sizes) == pytest.approx(target, abs=most / 2 if pack else most / 20)


@shows("train.tokens_per_batch")
@pytest.mark.parametrize("most", [64, 100])
def test_no_batch_exceeds_tokens_per_batch_except_a_single_longer_row(most: int) -> None:
    lengths = [*LENGTHS, 150, 170]
    batches, steps = batches_of(lengths, epochs=1, tokens_per_step=700, tokens_per_batch=most)
    sizes = [(sum(lengths[row] for row in rows), len(rows)) for step in range(steps) for rows in batches.step(step)]
    assert max(size for size, count in sizes if count > 1) <= most
    assert sorted(size for size, count in sizes if size > most) == [150, 170]
    fewest = math.ceil(sum(LENGTHS) / most)
    assert fewest <= len(sizes) - 2 <= 11 / 9 * fewest + 1 + fewest * (most == 64)  # two rows of 40 do not fit in 64


@shows("train.tokens_per_batch")
def test_a_batch_is_a_full_step_by_default_but_at_most_2048_tokens() -> None:
    assert Train(tokens_per_step=512).max_batch_tokens == 512
    assert Train(tokens_per_step=5000).max_batch_tokens == 2048
    assert Train(tokens_per_step=5000, tokens_per_batch=77).max_batch_tokens == 77


# The learning rate


@shows("train.learning_rate")
def test_learning_rate_replaces_the_methods_default_peak(tiny_model: Path) -> None:
    recipe = recipe_of(tiny_model, learning_rate=0.0123)
    model, _ = trainable_model(recipe, torch.float32, CPU)
    peak, factor = learning_rates(recipe, model)
    assert peak == 0.0123
    assert {factor(name) for name, _ in model.named_parameters()} == {1.0}
    own, _ = learning_rates(recipe_of(tiny_model), model)
    assert own == 8e-4  # full fine-tuning's, at this size


@shows("train.learning_rate")
def test_an_sgd_step_is_the_learning_rate_times_the_gradient(tmp_path: Path) -> None:
    points = [(2.0, 3.0), (1.0, 5.0)]
    loop, _ = loop_over(tmp_path, points, rate=0.07, steps=2)
    loop.step()
    loop.step()
    assert weight_of(loop) == pytest.approx(descent([[point] for point in points], 0.07)[-1], rel=1e-5)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, float], Any]] = {
    "cosine": lambda rule, final: get_cosine_with_min_lr_schedule_with_warmup(rule, 13, 80, min_lr_rate=final),
    "linear": lambda rule, final: get_linear_schedule_with_warmup(rule, 13, 80),
    "constant": lambda rule, final: get_constant_schedule_with_warmup(rule, 13),
}
"""The schedules of transformers, with 80 steps, 13 of them warmup."""


@shows("train.schedule", "train.warmup_ratio", "train.min_lr_ratio")
@pytest.mark.parametrize(
    ("schedule", "final"), [("cosine", 0.0), ("cosine", 0.3), ("linear", 0.0), ("constant", 0.0), ("constant", 0.3)]
)
def test_the_learning_rate_of_every_step_is_the_same_as_in_transformers(schedule: str, final: float) -> None:
    rule = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = SCHEDULES[schedule](rule, final)
    train = Train(steps=80, schedule=schedule, warmup_ratio=0.16, min_lr_ratio=final)  # 12.8 steps
    for step in range(1, 81):
        rule.step()
        theirs.step()
        assert learning_rate(train, 0.5, step, 80) == pytest.approx(rule.param_groups[0]["lr"], rel=1e-9, abs=1e-12)


@shows("train.min_lr_ratio")
def test_a_linear_schedule_falls_evenly_to_min_lr_ratio() -> None:
    train = Train(steps=12, schedule="linear", warmup_ratio=1 / 6, min_lr_ratio=0.25)
    rates = [learning_rate(train, 4.0, step, 12) for step in range(1, 13)]
    assert rates == pytest.approx([2.0, 4.0, 3.7, 3.4, 3.1, 2.8, 2.5, 2.2, 1.9, 1.6, 1.3, 1.0], rel=1e-12)


@shows("train.schedule")
def test_schedule_free_is_constant_and_the_default_is_cosine_to_a_tenth() -> None:
    free = Train(steps=10, optimizer="schedule_free", warmup_ratio=0.2, schedule="linear")
    assert [learning_rate(free, 3.0, step, 10) for step in range(1, 11)] == [1.5] + [3.0] * 9
    rates = [learning_rate(Train(steps=100), 1.0, step, 100) for step in range(1, 101)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.1 + 0.45 * (1 + math.cos(math.pi / 97))], rel=1e-12)
    assert rates[-1] == pytest.approx(0.1, rel=1e-12)


@shows("train.warmup_ratio")
@pytest.mark.parametrize(("share", "steps", "warm"), [(0.03, 50, 2), (0.5, 7, 4), (1.0, 6, 6), (0.0, 5, 0)])
def test_warmup_is_the_share_of_the_steps_rounded_up(share: float, steps: int, warm: int) -> None:
    train = Train(steps=steps, schedule="constant", warmup_ratio=share)
    rates = [learning_rate(train, 0.6, step, steps) for step in range(1, steps + 1)]
    assert rates == pytest.approx([0.6 * min(1.0, step / max(1, warm)) for step in range(1, steps + 1)], rel=1e-12)


# The optimizer


BETAS, ANOTHER_EPS, DECAY, RATE = (0.6, 0.87), 0.03, 0.4, 0.05

Group = dict[str, Any]


def muon(groups: list[Group], **more: Any) -> list[torch.optim.Optimizer]:
    """Muon for the block's matrix, AdamW for everything else."""
    inside, outside, plain = groups
    rule = torch.optim.Muon([inside], lr=RATE, adjust_lr_fn="match_rms_adamw")
    return [rule, torch.optim.AdamW([outside, plain], lr=RATE, **more)]


THEIRS: dict[str, Callable[[list[Group]], list[torch.optim.Optimizer]]] = {
    "adamw": lambda groups: [torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=ANOTHER_EPS)],
    "adamw_8bit": lambda groups: [torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=ANOTHER_EPS)],
    "paged_adamw_8bit": lambda groups: [torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=ANOTHER_EPS)],
    "adafactor": lambda groups: [Adafactor(groups, lr=RATE, scale_parameter=False, relative_step=False)],
    "lion": lambda groups: [pytorch_optimizer.Lion(groups, lr=RATE, betas=(0.9, 0.99))],
    "schedule_free": lambda groups: [
        pytorch_optimizer.ScheduleFreeAdamW(groups, lr=RATE, betas=BETAS, eps=ANOTHER_EPS)
    ],
    "muon": lambda groups: muon(groups, betas=BETAS, eps=ANOTHER_EPS),
}
"""The libraries' optimizers with the same settings; on a CPU, AdamW replaces those that need CUDA."""


@shows("train.optimizer", "train.betas", "train.eps", "train.weight_decay", "train.max_grad_norm")
@pytest.mark.parametrize("optimizer", THEIRS)
def test_each_optimizer_takes_the_same_steps_as_its_library(optimizer: str) -> None:
    torch.manual_seed(0)
    ours, theirs = TwoLayers(), TwoLayers()
    theirs.load_state_dict(ours.state_dict())
    train = Train(steps=1, optimizer=optimizer, betas=BETAS, eps=ANOTHER_EPS, weight_decay=DECAY)
    masters = MasterWeights(ours.named_parameters(), train, is_hidden=lambda name: name.startswith("block"))
    groups = [
        {"params": [theirs.block.weight], "weight_decay": DECAY},
        {"params": [theirs.embedding.weight], "weight_decay": DECAY},
        {"params": [theirs.embedding.bias, theirs.block.bias], "weight_decay": 0.0},
    ]
    rules = THEIRS[optimizer](groups)
    for step in range(6):
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        ours(x).square().sum().backward()
        norm = masters.step(RATE, 7, 0.9)
        (theirs(x).square().sum() / 7).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.9)
        assert norm == pytest.approx(float(expected), rel=1e-5)
        for rule in rules:
            rule.step()
            rule.zero_grad()
    masters.take_average()
    for rule in rules:
        getattr(rule, "eval", lambda: None)()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name, rtol=2e-5, atol=1e-6)


@shows("train.weight_decay")
def test_weight_decay_shrinks_only_matrices_in_proportion_to_the_rate() -> None:
    model = TwoLayers()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    masters = MasterWeights(model.named_parameters(), Train(steps=1, weight_decay=3.0))
    masters.step(0.05, 1, 1.0)  # no gradient at all
    for name, parameter in model.named_parameters():
        share = 1 - 0.05 * 3.0 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * share, msg=name)


@shows("train.max_grad_norm")
@pytest.mark.parametrize(("most", "share"), [(2.5, 2.5 / 12), (40.0, 1.0)])
def test_a_gradient_is_scaled_down_to_the_norm_and_never_up(tmp_path: Path, most: float, share: float) -> None:
    loop, events = loop_over(tmp_path, [(2.0, 6.0)], rate=0.1, max_grad_norm=most)  # gradient −12 at w = 0
    loop.step()
    assert weight_of(loop) == pytest.approx(0.1 * 12 * share, rel=1e-5)
    assert events[0]["grad_norm"] == pytest.approx(12.0, rel=1e-6)


@shows("train.ema_decay")
@pytest.mark.parametrize("decay", [0.3, 0.97])
def test_the_moving_average_follows_its_formula_and_is_evaluated_and_saved(tmp_path: Path, decay: float) -> None:
    points = [(1.0, 4.0), (2.0, 1.0), (1.5, 3.0), (0.5, 8.0)] * 3
    loop, events = loop_over(tmp_path, points, rate=0.2, steps=12, held_out=[(2.0, 3.0)], ema_decay=decay)
    average = 0.0
    for number, w in enumerate(descent([[point] for point in points], 0.2), 1):
        loop.step()
        now = min(decay, (1 + number) / (10 + number))
        average = now * average + (1 - now) * w
    loop.evaluate()
    assert weight_of(loop) == pytest.approx(w, rel=1e-5)  # training continues from the weights, not from their average
    assert events[-1]["loss"] == pytest.approx(0.5 * (2.0 * average - 3.0) ** 2, rel=1e-4)
    loop.masters.finish()
    assert weight_of(loop) == pytest.approx(average, rel=1e-5)


@shows("train.layer_decay")
@pytest.mark.parametrize("method", ["full", {"kind": "lora", "b_learning_rate_ratio": 4.0}])
def test_layer_decay_lowers_the_rate_with_each_block_from_the_output(tiny_model: Path, method: Any) -> None:
    recipe = recipe_of(tiny_model, method, learning_rate=0.01, layer_decay=0.7)
    model, _ = trainable_model(recipe, torch.float32, CPU)
    _, factor = learning_rates(recipe, model)
    distance = {".layers.1.": 1, ".layers.0.": 2, "embed_tokens": 3}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name in trained:
        power = next((count for part, count in distance.items() if part in name), 0)
        ratio = 4.0 if ".lora_B." in name else 1.0
        assert factor(name) == pytest.approx(0.7**power * ratio, rel=1e-12), name
    masters = MasterWeights(model.named_parameters(), recipe.train, factor)
    masters.step(0.01, 1, 1.0)
    rates = {group["lr"] for rule in masters.rules for group in rule.param_groups}
    assert rates == {0.01 * factor(name) for name in trained}


@shows("train.neftune_alpha")
def test_neftune_noise_is_uniform_and_scaled_with_the_size_of_each_row(tiny_model: Path) -> None:
    model, _ = trainable_model(recipe_of(tiny_model, neftune_alpha=7.0), torch.float32, CPU)
    batch = collate(table_of([5, 60]), [0, 1])
    inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "document_lengths": batch.lengths,
    }
    seen: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    model.train()(**inputs)
    model.eval()(**inputs)
    for part, length in zip((seen[0] - seen[1])[0].split(batch.lengths), [4, 59], strict=False):
        most = 7.0 / math.sqrt(length * 32)
        assert 0.95 * most < part.abs().max() <= most * (1 + 1e-5)
        assert part.abs().mean() == pytest.approx(most / 2, rel=0.1)
        assert abs(part.mean()) < 0.1 * most
    assert torch.equal(seen[1], model.get_input_embeddings().weight[batch.input_ids])


# Order and randomness


@shows("train.shuffle")
def test_without_shuffling_every_epoch_has_the_order_of_the_file() -> None:
    batches, steps = batches_of(epochs=2, shuffle=False, tokens_per_step=300, tokens_per_batch=100)
    assert rows_of(batches, 0, steps) == [*range(400), *range(400)]


@shows("train.shuffle", "train.seed")
def test_the_order_of_an_epoch_depends_on_the_seed_and_its_number() -> None:
    batches, steps = batches_of(pack=False, epochs=2, seed=5, tokens_per_step=300)
    expected = []
    for epoch in range(2):
        order = np.arange(400)
        np.random.default_rng([5, epoch]).shuffle(order)
        expected += order.tolist()
    assert rows_of(batches, 0, steps) == expected


@shows("train.seed")
def test_new_weights_and_dropout_depend_on_the_seed(tiny_model: Path) -> None:
    model, _ = trainable_model(recipe_of(tiny_model, {"kind": "lora", "rank": 4}, seed=23), torch.float32, CPU)
    assert torch.initial_seed() == 23  # the seed of dropout afterwards
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(23)
    with quiet_peft():
        theirs = get_peft_model(plain, LoraConfig(r=4, target_modules=r".*_proj"))
    expected = dict(theirs.named_parameters())
    new = [name for name, each in model.named_parameters() if each.requires_grad and "lora_A" in name]
    assert len(new) == 14
    for name in new:
        assert torch.equal(model.get_parameter(name), expected[name]), name


# Device and precision


@shows("train.precision")
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_model_has_the_given_precision_and_master_weights_are_fp32(
    tiny_model: Path, precision: str, dtype: torch.dtype
) -> None:
    recipe = recipe_of(tiny_model, precision=precision)
    model, _ = trainable_model(recipe, dtype_of(recipe.precision, CPU), CPU)
    assert {each.dtype for each in model.parameters()} == {dtype}
    hidden = model.base_model(input_ids=torch.arange(6)[None], position_ids=torch.arange(6)[None], document_lengths=[6])
    assert hidden.last_hidden_state.dtype == dtype
    masters = MasterWeights(model.named_parameters(), recipe.train)
    assert (masters.flat.dtype, masters.grad.dtype) == (torch.float32, torch.float32)


@shows("train.precision")
@pytest.mark.parametrize(
    ("small", "large", "dtype"),
    [(1.25, 1.5, torch.float32), (1.2, 1.7, torch.bfloat16), (0.6, 1.6, torch.bfloat16), (0.4, 9.0, torch.float32)],
)
def test_automatic_precision_is_bf16_if_it_is_more_than_1_5_times_as_fast(
    monkeypatch: pytest.MonkeyPatch, small: float, large: float, dtype: torch.dtype
) -> None:
    """The fastest of five bf16 products takes one second; `small` and `large` are the seconds of fp32 products. They
    are timed on one thread, by its processor time, on which other processes have no influence."""
    monkeypatch.setattr("sys.platform", "linux")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    now = 0.0
    seconds = [3.0, 1.0, 2.0, 1.5, 5.0]
    ticks = iter([tick for slower in (1.0, small, 1.0, large) for each in seconds for tick in (each * slower, 0.0)])

    def fake_time() -> float:
        nonlocal now
        assert torch.get_num_threads() == 1
        value = now
        now += next(ticks)
        return value

    sides: list[int] = []

    def ones(*shape: int, **options: Any) -> torch.Tensor:
        """Small matrices, because the products are not used."""
        sides.extend(shape)
        return torch.full((2, 2), 1.0, **options)

    bf16_speedup.cache_clear()
    monkeypatch.setattr("torch.ones", ones)
    monkeypatch.setattr("tunesmith.models.precision.time", SimpleNamespace(thread_time=fake_time, perf_counter=None))
    try:
        assert dtype_of("auto", CPU) == dtype
        assert torch.get_num_threads() == 2
        assert bf16_speedup("cpu") == pytest.approx(small if small < 0.5 else large)
        assert sides == [384] * 4 + [768] * 4 * (small >= 0.5)
        assert (dtype_of("bf16", CPU), dtype_of("fp32", CPU)) == (torch.bfloat16, torch.float32)
    finally:
        torch.set_num_threads(threads)
        bf16_speedup.cache_clear()


@shows("train.device")
def test_device_is_the_given_one_or_a_gpu_if_available(tiny_model: Path, tmp_path: Path) -> None:
    assert device_of("cpu") == CPU
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 9, encoding="utf-8")
    recipe = {"base": str(tiny_model), "data": {"train": str(tmp_path / "rows.jsonl")}, "train": {"device": "cuda:77"}}
    with pytest.raises(UserError, match="cuda:77 is not a device of this machine"):
        tunesmith.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Memory


@shows("train.gradient_checkpointing")
@pytest.mark.parametrize(("enabled", "passes"), [(True, 2), (False, 1)])
def test_gradient_checkpointing_recomputes_every_block_and_stores_its_input_only(
    tiny_model: Path, enabled: bool, passes: int
) -> None:
    recipe = recipe_of(tiny_model, gradient_checkpointing=enabled)
    model, _ = trainable_model(recipe, torch.float32, CPU)
    model.train()
    runs = [0, 0]
    for index, block in enumerate(blocks(plain_model(model))):

        def count(*_: Any, index: int = index) -> None:
            runs[index] += 1

        block.self_attn.register_forward_pre_hook(count)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        loss = recipe.objective.build().loss(model, collate(table_of([50, 60]), [0, 1]))
    loss.backward()
    assert runs == [passes, passes]
    inner = [shape for shape in kept if shape[-1:] == (64,) and shape[-2:-1] == (128,)]  # in the feed-forward layer
    assert (len(inner) == 0) == enabled


@shows("train.memory_limit")
def test_a_memory_limit_is_parsed_and_turns_on_activation_checkpointing(tiny_model: Path) -> None:
    written = {"12GB": 12 * 10**9, "1.5GiB": 3 * 2**29, "900MiB": 900 * 2**20, "640 KB": 640_000}
    assert {text: Train(memory_limit=text).memory_bytes for text in written} == written
    assert Train().memory_bytes is None
    batch_plan = BatchPlan.of(recipe_of(tiny_model, tokens_per_step=8192, tokens_per_batch=8192), table_of(LENGTHS))
    here = this_device(CPU)
    unlimited = plan_run(batch_plan, torch.float32, here)
    limit = round(1.05 * (unlimited.memory.peak_bytes - 2**20))
    limited = plan_within(batch_plan, torch.float32, here, limit)
    assert limited.memory.peak_bytes <= limit / 1.05 < unlimited.memory.peak_bytes
    assert (limited.checkpointed, limited.batch_plan.tokens_per_batch) == (1, 8192)


@shows("train.offload_activations")
def test_activations_are_offloaded_to_the_host_only_from_a_gpu(tmp_path: Path) -> None:
    offloading, _ = loop_over(tmp_path, [(1.0, 2.0)], offload_activations=True)
    offloading.device = torch.device("cuda")
    other, _ = loop_over(tmp_path, [(1.0, 2.0)])
    other.device = torch.device("cuda")
    assert isinstance(offloading._kept_activations(), torch.autograd.graph.save_on_cpu)
    assert not isinstance(other._kept_activations(), torch.autograd.graph.save_on_cpu)
    offloading.device = CPU
    assert not isinstance(offloading._kept_activations(), torch.autograd.graph.save_on_cpu)


# Checkpoints and evaluations


def steps_with(events: list[Event], kind: str) -> list[int]:
    return [event["step"] for event in named(events, kind)]


def fitted(directory: Path, steps: int = 11, **settings: Any) -> list[Event]:
    """The events of a run whose held-out loss never falls, so that the first evaluation is the best."""
    loop, events = loop_over(
        directory,
        [(1.0, 2.0)] * steps,
        steps=steps,
        objective=SquaredErrors([2.0] * 99),
        held_out=[(1.0, 2.0)],
        **settings,
    )
    loop.fit(SimpleNamespace(asked=False))
    return events


@shows("train.checkpoint_every")
@pytest.mark.parametrize(("every", "steps"), [(4, [4, 8, 11]), (None, list(range(1, 12))), (50, [11])])
def test_checkpoints_are_checkpoint_every_steps_apart_and_at_the_end(
    tmp_path: Path, every: int | None, steps: list[int]
) -> None:
    assert steps_with(fitted(tmp_path, checkpoint_every=every), "checkpoint") == steps


@shows("train.keep_checkpoints")
@pytest.mark.parametrize(
    ("keep", "expected"), [(1, ["step-000011"]), (3, ["step-000009", "step-000010", "step-000011"])]
)
def test_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int, expected: list[str]) -> None:
    fitted(tmp_path, checkpoint_every=1, keep_checkpoints=keep)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == expected


@shows("train.evaluate_every")
@pytest.mark.parametrize(("every", "steps"), [(4, [0, 4, 8, 11]), (50, [0, 11])])
def test_evaluations_are_evaluate_every_steps_apart_and_at_start_and_end(
    tmp_path: Path, every: int, steps: list[int]
) -> None:
    assert steps_with(fitted(tmp_path, evaluate_every=every), "evaluation") == steps


@shows("train.checkpoint_every")
def test_checkpoints_are_a_tenth_of_the_run_apart_by_default(tmp_path: Path) -> None:
    assert steps_with(fitted(tmp_path, steps=25), "checkpoint") == [*range(2, 25, 2), 25]


@shows("train.evaluate_rows")
@pytest.mark.parametrize(("most", "count"), [(7, 7), (500, 40)])
def test_every_evaluation_uses_the_same_evaluate_rows_held_out_rows(tmp_path: Path, most: int, count: int) -> None:
    held_out = [(1.0, float(number)) for number in range(40)]
    rows = Evaluations.of(Train(evaluate_rows=most), 4, 10_000, table_of_points(held_out)).rows
    loop, events = loop_over(tmp_path, [(1.0, 2.0)], held_out=[held_out[row] for row in rows])
    loop.evaluate()
    loop.evaluate()
    assert rows == np.random.default_rng(0).permutation(40)[:count].tolist()
    for event in events:
        assert (event["rows"], event["loss_tokens"]) == (count, count)
        assert event["loss"] == pytest.approx(np.mean(0.5 * np.array(rows, float) ** 2), rel=1e-6)


def stopped_at(directory: Path, losses: list[float], **stopping: Any) -> tuple[int, str, int | None]:
    """The last step, the reason and the best step of a run of nine steps with these held-out losses."""
    loop, _ = loop_over(
        directory,
        [(1.0, 2.0)] * 9,
        steps=9,
        objective=SquaredErrors(losses),
        held_out=[(1.0, 2.0)],
        evaluate_every=1,
        early_stopping=stopping,
    )
    reason = loop.fit(SimpleNamespace(asked=False))
    return loop.state.step, reason, loop.state.best_step


@shows("train.early_stopping.patience", "train.early_stopping.metric")
@pytest.mark.parametrize(
    ("patience", "last", "expected"),
    [
        (1, 1.0, (2, "early stopping", 1)),
        (2, 1.0, (5, "early stopping", 3)),
        (3, 1.0, (9, "done", 9)),
        (3, 2.1, (9, "early stopping", 6)),
        (4, 2.1, (9, "done", 6)),
    ],
)
def test_a_run_stops_after_patience_evaluations_without_improvement(
    tmp_path: Path, patience: int, last: float, expected: tuple[int, str, int]
) -> None:
    losses = [5.0, 4.0, 4.5, 3.0, 3.5, 3.2, 2.0, 2.5, 2.2, last]
    assert stopped_at(tmp_path, losses, patience=patience, metric="loss") == expected


@shows("train.early_stopping.min_delta")
@pytest.mark.parametrize(
    ("delta", "expected"),
    [(0.0, (9, "done", 8)), (0.25, (9, "done", 7)), (0.5, (9, "early stopping", 6)), (0.75, (6, "early stopping", 3))],
)
def test_min_delta_is_the_smallest_decrease_that_counts_as_an_improvement(
    tmp_path: Path, delta: float, expected: tuple[int, str, int]
) -> None:
    losses = [8.0, 7.9, 7.8, 7.0, 6.75, 6.5, 6.25, 6.125, 5.875, 5.9]
    assert stopped_at(tmp_path, losses, patience=3, min_delta=delta) == expected


# A full run


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four steps with TensorBoard."""
    directory = tmp_path_factory.mktemp("train")
    rows = directory / "rows.jsonl"
    lines = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}."} for n in range(40)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(rows), "held_out": 0.2},
        "train": {
            "steps": 4,
            "tokens_per_step": 200,
            "tokens_per_batch": 90,
            "learning_rate": 0.004,
            "schedule": "linear",
            "warmup_ratio": 0.5,
            "min_lr_ratio": 0.25,
            "precision": "bf16",
            "evaluate_every": 2,
            "tensorboard": True,
        },
    }
    return tunesmith.train(recipe, directory / "run")


@shows("train.tensorboard")
def test_tensorboard_has_every_scalar_of_every_step_and_evaluation(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(run.directory / "tensorboard"))
    written.Reload()
    groups = {
        "train": ("step", ["loss", "grad_norm", "learning_rate", "tokens", "loss_tokens", "seconds"]),
        "held_out": ("evaluation", ["loss", "perplexity"]),
    }
    assert set(written.Tags()["scalars"]) == {f"{group}/{name}" for group in groups for name in groups[group][1]}
    for group, (kind, names) in groups.items():
        events = named(run.events(), kind)
        for name in names:
            scalars = written.Scalars(f"{group}/{name}")
            assert [each.step for each in scalars] == [event["step"] for event in events]
            assert [each.value for each in scalars] == pytest.approx([event[name] for event in events], rel=1e-6)


@shows("train.steps", "train.evaluate_every", "train.learning_rate", "train.schedule", "train.precision")
def test_a_run_follows_its_settings(run: Run) -> None:
    events = run.events()
    steps, evaluations = named(events, "step"), named(events, "evaluation")
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert [event["step"] for event in evaluations] == [0, 2, 4]
    assert [event["learning_rate"] for event in steps] == pytest.approx([0.002, 0.004, 0.0025, 0.001], rel=1e-12)
    (start,) = named(events, "start")
    assert (start["precision"], start["learning_rate"], start["total_steps"]) == ("bfloat16", 0.004, 4)
    assert (start["device"], start["step"]) == ("cuda" if torch.cuda.is_available() else "cpu", 0)
