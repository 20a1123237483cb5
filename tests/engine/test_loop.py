"""A training step: sums gradients, divides once, clips, and skips non-finite losses and gradients."""

import math
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median_low as median
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_loop import loop_over
from transformers import AutoModelForCausalLM

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.config.train import Train
from tunesmith.data.batch import collate
from tunesmith.data.pack import Batches
from tunesmith.data.prepare import prepare
from tunesmith.engine.checkpoint import load_checkpoint
from tunesmith.engine.interrupt import Interruption
from tunesmith.engine.loop import Loop
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.schedule import learning_rate
from tunesmith.engine.trainable import trainable_model
from tunesmith.inference.held_out import held_out_evaluation
from tunesmith.models.load import load_tokenizer
from tunesmith.objectives.objective import Objective
from tunesmith.run import Event, Events

CPU = torch.device("cpu")


def recipe_for(model: Path, rows: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "base": str(model),
        "data": {"train": str(rows), "held_out": 0.1, "cache": False},
        "method": {"kind": "lora", "rank": 4},
        "train": {"steps": 5, "tokens_per_step": 256, "learning_rate": 1e-2, "precision": "fp32"},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value}
    return Recipe.load(values)


def gradient_in_groups(recipe: Recipe, groups: list[list[int]]) -> list[torch.Tensor]:
    """The mean gradient over all rows in float64, summed over batches of the given rows."""
    prepared = prepare(recipe, load_tokenizer(recipe.base))
    model, _ = trainable_model(recipe, torch.float32, CPU)
    model.double()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = [collate(prepared.train, rows) for rows in groups]
    parts = [torch.autograd.grad(recipe.objective.build().loss(model, batch), trained) for batch in batches]
    loss_tokens = sum(batch.loss_tokens for batch in batches)
    return [torch.stack(gradients).sum(0) / loss_tokens for gradients in zip(*parts, strict=True)]


def test_accumulated_batches_have_the_gradient_of_one_big_batch(
    tiny_model: Path, write_rows: Callable[..., Path]
) -> None:
    """Guards against https://github.com/huggingface/transformers/issues/34191."""
    recipe = recipe_for(tiny_model, write_rows())
    big = gradient_in_groups(recipe, [list(range(12))])
    small = gradient_in_groups(recipe, [[0], [1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11]])
    for ours, expected in zip(small, big, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_a_step_divides_once_over_all_its_batches(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    steps = []
    for tokens_per_batch in (100_000, 64):
        events: list[Event] = []
        recipe = recipe_for(
            tiny_model,
            write_rows(20),
            train={"steps": 1, "tokens_per_step": 100_000, "tokens_per_batch": tokens_per_batch},
        )
        tunesmith.train(recipe, tmp_path / str(tokens_per_batch), subscribers=[events.append])
        steps += [event for event in events if event["event"] == "step"]
    assert steps[0]["tokens"] == steps[1]["tokens"]
    assert steps[0]["loss"] == pytest.approx(steps[1]["loss"], rel=1e-5)
    assert steps[0]["grad_norm"] == pytest.approx(steps[1]["grad_norm"], rel=1e-4)


def test_loss_of_a_run_equals_transformers_own_loss(tiny_model: Path, write_rows: Callable[..., Path]) -> None:
    recipe = recipe_for(tiny_model, write_rows())
    prepared = prepare(recipe, load_tokenizer(recipe.base))
    model, _ = trainable_model(recipe, torch.float32, CPU)
    ours = recipe.objective.build().loss(model, batch := collate(prepared.train, range(8))).item() / batch.loss_tokens
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    total, count = 0.0, 0
    for row in range(8):
        ids, loss_mask = prepared.train[row]
        labels = torch.where(torch.from_numpy(loss_mask), torch.from_numpy(ids).long(), -100)
        out = reference(input_ids=torch.from_numpy(ids).long()[None], labels=labels[None])
        row_tokens = int(loss_mask[1:].sum())
        total, count = total + out.loss.item() * row_tokens, count + row_tokens
    assert math.isclose(ours, total / count, rel_tol=1e-5)


def test_adamw_on_flat_masters_equals_pytorchs_on_the_parameters() -> None:
    train = Train(steps=1, weight_decay=0.1)
    torch.manual_seed(0)
    ours = torch.nn.Linear(5, 3)
    theirs = torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    masters = MasterWeights(ours.named_parameters(), train)
    adamw = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}], lr=1e-2
    )
    for step in range(4):
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        ours(x).square().sum().backward()
        masters.step(1e-2, 7, 1.0)
        (theirs(x).square().sum() / 7).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_working_copies_in_bf16_are_the_rounded_masters() -> None:
    layer = torch.nn.Linear(4, 4).bfloat16()
    masters = MasterWeights(layer.named_parameters(), Train(steps=1))
    for _ in range(3):
        layer(torch.randn(2, 4).bfloat16()).square().sum().backward()
        masters.step(1e-4, 1, 1.0)
    torch.testing.assert_close(layer.weight.detach(), masters.unrounded()["weight"].bfloat16(), rtol=0, atol=0)
    assert (layer.weight.detach().float() != masters.unrounded()["weight"]).any()


class Poisoned(Objective):
    """An objective whose loss or gradient is not finite in the given steps."""

    def __init__(self, real: Any, steps: set[int], value: float, in_gradient: bool) -> None:
        self.real, self.steps, self.value, self.in_gradient, self.calls = real, steps, value, in_gradient, 0

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        self.calls += 1
        loss: torch.Tensor = self.real.loss(model, batch)
        if self.calls not in self.steps:
            return loss
        if self.in_gradient:
            loss.register_hook(lambda grad: grad * self.value)
            return loss
        return loss * self.value

    def losses(self, model: Any, batch: Any) -> torch.Tensor:
        losses: torch.Tensor = self.real.losses(model, batch)
        return losses


def poisoned_loop(
    recipe: Recipe, directory: Path, steps: set[int], value: float, in_gradient: bool
) -> tuple[Loop, list[Event]]:
    prepared = prepare(recipe, load_tokenizer(recipe.base))
    model, objective = trainable_model(recipe, torch.float32, CPU)
    events: list[Event] = []
    batches = Batches(prepared.train, tokens_per_step=128, tokens_per_batch=128, pack=True, shuffle=True, seed=0)
    loop = Loop(
        model=model,
        objective=Poisoned(objective, steps, value, in_gradient),
        batches=batches,
        held_out=held_out_evaluation(
            model, objective, recipe.objective.head, prepared.held_out, range(len(prepared.held_out))
        ),
        evaluate_every=1,
        masters=MasterWeights(model.named_parameters(), recipe.train),
        train=recipe.train,
        total_steps=5,
        peak_learning_rate=1e-2,
        tokens_per_batch=128,
        directory=directory,
        events=Events(events.append),
        device=CPU,
    )
    return loop, events


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("in_gradient", [False, True])
def test_nan_never_reaches_the_weights(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path, value: float, in_gradient: bool
) -> None:
    """Guards against https://github.com/hiyouga/LlamaFactory/issues/2916."""
    loop, events = poisoned_loop(recipe_for(tiny_model, write_rows()), tmp_path, {2}, value, in_gradient)
    loop.step()
    before = loop.masters.flat.clone()
    loop.step()
    assert torch.equal(loop.masters.flat, before)
    skipped = [event for event in events if event["event"] == "skipped"]
    assert len(skipped) == 1
    assert "rows.jsonl row" in skipped[0]["rows"][0]
    loop.step()
    assert not torch.equal(loop.masters.flat, before)
    assert torch.isfinite(loop.masters.flat).all()


def test_a_run_stops_and_names_the_rows_after_repeated_nans(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    loop, _ = poisoned_loop(recipe_for(tiny_model, write_rows()), tmp_path, {1, 2, 3}, math.nan, False)
    loop.step()
    loop.step()
    with pytest.raises(tunesmith.UserError, match=r"3 steps in a row.*rows\.jsonl row"):
        loop.step()


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_warms_up_to_the_peak_and_falls_to_its_minimum(schedule: str) -> None:
    train = Train(steps=100, warmup_ratio=0.1, schedule=schedule, min_lr_ratio=0.2)
    rates = [learning_rate(train, 1.0, step, 100) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0 == max(rates)
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2)
    assert all(a >= b for a, b in pairwise(rates[9:]))


def test_the_seconds_of_a_step_and_an_evaluation_are_those_of_the_call(tmp_path: Path) -> None:
    loop, events = loop_over(tmp_path, [(1.0, 2.0)], held_out=[(1.0, 1.0)])
    for kind, call in (("step", loop.step), ("evaluation", loop.evaluate)):
        started = time.perf_counter()
        call()
        passed = time.perf_counter() - started
        assert events[-1]["event"] == kind
        assert 0 <= events[-1]["seconds"] <= passed
    assert loop.state.seconds == {
        "start": 0.0,
        "training": events[0]["seconds"],
        "evaluation": events[1]["seconds"],
        "checkpoints": 0.0,
    }


def test_the_time_left_is_that_of_steps_evaluations_and_checkpoints(tmp_path: Path) -> None:
    points = [(1.0, 2.0)]
    loop, events = loop_over(tmp_path, points, steps=10, held_out=points, evaluate_every=4, checkpoint_every=3)
    loop.fit(Interruption())
    steps = [event for event in events if event["event"] == "step"]
    assert steps[-1]["seconds_left"] == pytest.approx(  # the last evaluation and checkpoint are to come
        median(event["seconds"] for event in events if event["event"] == "evaluation" and event["step"] < 10)
        + median(event["seconds"] for event in events if event["event"] == "checkpoint" and event["step"] < 10)
    )
    loop.recent.clear()
    loop.recent |= {"training": deque([1.0]), "evaluation": deque([20.0]), "checkpoints": deque([100.0])}
    for step, left in ((3, 7 + 60 + 400), (4, 6 + 60 + 300), (8, 2 + 40 + 200), (9, 1 + 20 + 200), (10, 20 + 100)):
        loop.state.step = step
        assert loop.seconds_left() == pytest.approx(left), step


@pytest.mark.parametrize(
    ("seconds", "left"),
    [
        pytest.param([90.0], 90, id="only one step"),
        pytest.param([90.0, 1.0], 1, id="a slow first step counts no more from the second on"),
        pytest.param([90.0, 2.0, 1.0, 3.0, 80.0], 3, id="single slow steps do not count"),
        pytest.param([1.0] * 10 + [5.0] * 11, 5, id="steps that stay slow do"),
        pytest.param([5.0] * 30 + [1.0] * 10, 1, id="the last twenty steps count"),
    ],
)
def test_the_time_left_is_that_of_usual_steps(tmp_path: Path, seconds: list[float], left: float) -> None:
    loop, _ = loop_over(tmp_path, [(1.0, 2.0)], steps=len(seconds) + 1)
    for duration in seconds:
        loop._took("training", duration)
    loop.state.step = len(seconds)
    assert loop.seconds_left() == pytest.approx(left)


def test_early_stopping_keeps_the_best_weights(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    events: list[Event] = []
    recipe = recipe_for(
        tiny_model,
        write_rows(),
        train={
            "steps": 60,
            "learning_rate": 0.5,
            "evaluate_every": 1,
            "early_stopping": {"patience": 2},
        },
    )
    run = tunesmith.train(recipe, tmp_path / "run", subscribers=[events.append])
    assert events[-1]["reason"] == "early stopping"
    assert events[-1]["step"] < 60
    losses = {event["step"]: event["loss"] for event in events if event["event"] == "evaluation"}
    best = min(losses, key=lambda step: losses[step])
    assert best == events[-1]["step"] - 2
    master = load_checkpoint(run.directory / "checkpoints" / f"step-{best:06d}")[0]["master"]
    assert run.output is not None
    saved = load_file(run.output / "adapter_model.safetensors").values()
    assert sorted(torch.cat([tensor.flatten() for tensor in saved]).tolist()) == sorted(master.tolist())
