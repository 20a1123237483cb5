"""A run's guarantees: it keeps the best weights, a failed step has no effect, a step matches transformers and PyTorch,
resuming refuses changed inputs, and the output has the base's precision."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import CHATML
from safetensors.torch import load_file
from toy_loop import GRADIENT_DESCENT, SquaredErrors, descent, loop_over, named, weight_of
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.data.pack import Batches
from tunesmith.data.prepare import prepare
from tunesmith.engine.checkpoint import LoopState, load_checkpoint, save_checkpoint
from tunesmith.engine.loop import Loop
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.output import save_output
from tunesmith.engine.trainable import trainable_model
from tunesmith.errors import UserError
from tunesmith.inference.held_out import held_out_evaluation, held_out_losses
from tunesmith.models.load import load_tokenizer
from tunesmith.models.prompts import plain_model
from tunesmith.run import Event, Events, Run
from tunesmith.training.saving import restore_best

CPU = torch.device("cpu")
STEADY = {"schedule": "constant", "warmup_ratio": 0.0, "precision": "fp32"}
"""Settings with which a run's first steps do not depend on the total number of steps."""

POINTS = [(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (1.5, 0.5), (2.5, 2.0), (0.5, 1.0), (1.2, 2.2), (0.7, 3.0)]


def fit(loop: Loop) -> str:
    return loop.fit(SimpleNamespace(asked=False))


def rows_in(file: Path, answers: list[str]) -> str:
    lines = [{"question": f"What is {number}?", "answer": answer} for number, answer in enumerate(answers)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(file)


def saved_tensors(run: Run) -> dict[str, torch.Tensor]:
    """The tensors of the run's output."""
    assert run.output is not None
    name = "adapter_model" if run.output.name == "adapter" else "model"
    return load_file(run.output / f"{name}.safetensors")


def evaluations(run: Run) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in named(run.events(), "evaluation")]


# The best weights


@pytest.fixture
def overfitting(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """Only half of each held-out answer can be learned, so that the held-out loss falls at first and then rises."""
    return {
        "base": str(tiny_model),
        "data": {
            "train": rows_in(tmp_path / "rows.jsonl", ["aaaaaaaa"] * 24),
            "held_out": rows_in(tmp_path / "other.jsonl", ["aaaabbbb"] * 6),
            "cache": False,
        },
        "method": "full",
        "train": {"steps": 8, "tokens_per_step": 60, "learning_rate": 0.04, "evaluate_every": 1, **STEADY},
    }


def test_the_saved_weights_are_those_of_the_best_evaluation(overfitting: dict[str, Any], tmp_path: Path) -> None:
    """They equal those of a run that ends there. For AdamW see `test_early_stopping_keeps_the_best_weights`."""
    overfitting["train"] |= {"early_stopping": {"patience": 2}, "optimizer": "schedule_free"}
    run = tunesmith.train(overfitting, tmp_path / "run")
    losses = evaluations(run)
    best, _ = min(losses, key=lambda pair: pair[1])
    assert best > 0
    assert losses[-1][0] == best + 2 < 8
    del overfitting["train"]["early_stopping"]
    overfitting["train"] |= {"steps": best, "evaluate_every": 9}
    expected = saved_tensors(tunesmith.train(overfitting, tmp_path / "again"))
    for name, tensor in saved_tensors(run).items():
        assert torch.equal(tensor, expected[name]), name


def test_weights_that_never_improved_are_saved_unchanged(
    overfitting: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    overfitting["train"] |= {
        "learning_rate": 2.0,
        "steps": 3,
        "early_stopping": {"patience": 2},
        "optimizer": "schedule_free",
    }
    run = tunesmith.train(overfitting, tmp_path / "run")
    assert min(evaluations(run), key=lambda pair: pair[1])[0] == 0
    base = load_file(tiny_model / "model.safetensors")
    for name, tensor in saved_tensors(run).items():
        assert torch.equal(tensor, base[name]), name


BEST = [9.0, 7.0, 5.0, 6.0, 6.5]
"""Held-out losses at the start and after four steps; step 2 is the best."""


@pytest.mark.parametrize(
    ("settings", "script", "kept"),
    [
        ({"early_stopping": {"patience": 9}}, BEST, 2),
        ({"early_stopping": {"patience": 9}}, [1.0, *BEST[1:]], 0),
        ({"early_stopping": {"patience": 9}}, [*BEST[:4], 4.0], 4),
        ({"early_stopping": {"patience": 1}}, BEST, 2),
        ({"early_stopping": None}, BEST, 4),
        ({"early_stopping": None}, [1.0, *BEST[1:]], 4),
    ],
)
@pytest.mark.parametrize("average", [None, 0.5])
def test_early_stopping_restores_the_best_weights_and_else_the_last_are_kept(
    tmp_path: Path, settings: dict[str, Any], script: list[float], kept: int, average: float | None
) -> None:
    train = {"evaluate_every": 1, "keep_checkpoints": 1, "ema_decay": average, **settings}
    loop, _ = loop_over(tmp_path, POINTS, objective=SquaredErrors(script), held_out=[(1.0, 1.0)], start=0.3, **train)
    fit(loop)
    restore_best(Run(tmp_path), loop)
    loop.masters.finish()
    expected = averages = 0.3
    for number, w in enumerate(descent([[point] for point in POINTS[:kept]], 0.1, 0.3), 1):
        decay = min(average or 0.0, (1 + number) / (10 + number))
        expected, averages = w, decay * averages + (1 - decay) * w
    assert weight_of(loop) == pytest.approx(expected if average is None else averages, rel=1e-6)


def test_a_run_resumed_from_its_first_checkpoint_does_not_evaluate_it_again(tmp_path: Path) -> None:
    settings = {"evaluate_every": 1, "early_stopping": {"patience": 2}}
    loop, _ = loop_over(tmp_path, POINTS, objective=SquaredErrors([1.0]), held_out=[(1.0, 1.0)], **settings)
    loop.total_steps = 0
    fit(loop)
    again, events = loop_over(
        tmp_path, POINTS, objective=SquaredErrors([4.0] * 9), held_out=[(1.0, 1.0)], steps=4, **settings
    )
    tensors, again.state = load_checkpoint(tmp_path / "checkpoints" / "step-000000")
    again.masters.restore(tensors)
    assert fit(again) == "early stopping"
    assert [event["step"] for event in named(events, "evaluation")] == [1, 2]
    assert again.state.best_step == 0


def test_a_nan_evaluation_is_never_the_best(tmp_path: Path) -> None:
    script = SquaredErrors([math.nan, 3.0, math.nan, 2.0])
    settings = {"evaluate_every": 1, "early_stopping": {"patience": 2}}
    loop, _ = loop_over(tmp_path, [(1.0, 2.0)] * 3, steps=3, objective=script, held_out=[(1.0, 1.0)], **settings)
    assert fit(loop) == "done"
    assert (loop.state.best_step, loop.state.best_loss, loop.state.evaluations_without_improvement) == (3, 2.0, 0)


# Counters restart


def test_patience_restarts_after_a_better_evaluation(tmp_path: Path) -> None:
    script = SquaredErrors([5.0, 6.0, 4.0, 6.0, 3.0, 6.0, 6.0])
    loop, _ = loop_over(tmp_path, [(1.0, 2.0)], objective=script, held_out=[(1.0, 1.0)])
    counts = []
    for _ in range(7):
        loop.evaluate()
        counts.append(loop.state.evaluations_without_improvement)
    assert counts == [0, 1, 0, 1, 0, 1, 2]


def poisoned(numbers: set[int]) -> Callable[[int], float | None]:
    """A hook that returns NaN at the losses with these numbers."""
    return lambda number: math.nan if number in numbers else None


def test_only_three_consecutive_bad_steps_end_a_run(tmp_path: Path) -> None:
    points = [(1.0, 2.0), (2.0, 1.0)] * 5
    script = SquaredErrors(before=poisoned({1, 2, 4, 5, 7, 8, 9}))
    loop, events = loop_over(tmp_path, points, steps=10, objective=script)
    counts = []
    for _ in range(8):
        loop.step()
        counts.append(loop.state.skipped_in_a_row)
    assert counts == [1, 2, 0, 1, 2, 0, 1, 2]
    good = descent([[points[2]], [points[5]]], 0.1)[-1]
    assert weight_of(loop) == pytest.approx(good, rel=1e-6)
    with pytest.raises(UserError, match=r"3 steps in a row up to step 9.*points\.jsonl row 9\."):
        loop.step()
    assert weight_of(loop) == pytest.approx(good, rel=1e-6)
    assert [event["step"] for event in named(events, "skipped")] == [1, 2, 4, 5, 7, 8, 9]


def test_a_bad_batch_discards_the_entire_step(tmp_path: Path) -> None:
    points = [(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (1.5, 0.5), (2.5, 2.0), (0.5, 1.0)]
    script = SquaredErrors(before=poisoned({2}))
    loop, events = loop_over(tmp_path, points, step=3, steps=2, objective=script)
    loop.step()
    assert weight_of(loop) == 0.0
    assert script.calls == 2  # the rest of the step is not computed
    assert named(events, "skipped")[0]["rows"] == ["points.jsonl row 2"]  # the batch that caused it
    loop.step()
    assert weight_of(loop) == pytest.approx(descent([points[3:]], 0.1)[-1], rel=1e-6)


def test_a_bad_gradient_reports_every_row_of_the_step(tmp_path: Path) -> None:
    def in_gradient(number: int) -> None:
        if number == 8:
            loop.model.weight.grad = torch.full((1,), math.inf)  # backward then adds to it

    loop, events = loop_over(tmp_path, [(1.0, 1.0)] * 8, step=8, steps=3, objective=SquaredErrors(before=in_gradient))
    loop.step()
    assert named(events, "skipped")[0]["rows"] == [f"points.jsonl row {number}" for number in range(1, 9)]
    assert named(events, "skipped")[0]["reason"] == "the gradient was not finite; the weights are unchanged"
    assert weight_of(loop) == 0.0
    assert math.isinf(named(events, "step")[0]["grad_norm"])


# Memory that runs out within a step


class OutOnce:
    """Memory runs out before the losses with these numbers are computed."""

    def __init__(self, *numbers: int, error: type[BaseException] = torch.OutOfMemoryError) -> None:
        self.numbers, self.error = set(numbers), error

    def __call__(self, number: int) -> None:
        if number in self.numbers:
            raise self.error("can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_running_out_of_memory_in_a_step_does_not_change_the_result(tmp_path: Path, error: type[BaseException]) -> None:
    script = SquaredErrors(before=OutOnce(2, error=error))  # after the first batch has added its gradient
    loop, events = loop_over(tmp_path, POINTS, batch=2, step=4, steps=2, objective=script)
    loop.step()
    loop.step()
    assert weight_of(loop) == pytest.approx(descent([POINTS[:4], POINTS[4:]], 0.1)[-1], rel=1e-6)
    steps = named(events, "step")
    assert [event["tokens"] for event in steps] == [40, 40]
    assert steps[0]["loss"] == pytest.approx(np.mean([0.5 * y**2 for _, y in POINTS[:4]]), rel=1e-6)
    (warning,) = named(events, "warning")
    assert warning["message"] == (
        "Memory ran out with 20 tokens in a batch. From now on a batch holds at most 10, and a step takes more batches "
        "for the same rows."
    )
    assert loop.state.most_tokens == 10


def test_running_out_of_memory_halves_the_batch_with_the_most_tokens(tmp_path: Path) -> None:
    loop, events = loop_over(tmp_path, POINTS[:5], batch=3, step=5, objective=SquaredErrors(before=OutOnce(2)))
    assert [len(rows) for rows in loop.batches_of_step()] == [3, 2]
    loop.step()
    assert named(events, "warning")[0]["message"].startswith(
        "Memory ran out with 30 tokens in a batch. From now on a batch holds at most 15,"
    )
    assert weight_of(loop) == pytest.approx(descent([POINTS[:5]], 0.1)[-1], rel=1e-6)


def test_running_out_of_memory_with_a_single_row_names_that_row(tmp_path: Path) -> None:
    script = SquaredErrors(before=OutOnce(1, 2, 3, 4))
    loop, _ = loop_over(tmp_path, POINTS, batch=2, step=4, steps=2, objective=script)
    with pytest.raises(UserError, match=r"single row of 10 tokens \(points\.jsonl row 1\)"):
        loop.step()


def test_another_error_in_a_step_is_not_mistaken_for_running_out_of_memory(tmp_path: Path) -> None:
    class OtherError:
        def __call__(self, number: int) -> None:
            raise RuntimeError("something else")

    loop, _ = loop_over(tmp_path, POINTS, batch=2, step=4, objective=SquaredErrors(before=OtherError()))
    with pytest.raises(RuntimeError, match="something else"):
        loop.step()


def test_layers_that_share_inputs_forget_a_failed_pass(tmp_path: Path) -> None:
    loop, _ = loop_over(tmp_path, POINTS, batch=2)
    forgotten = []
    loop.model.drop_pass = lambda: forgotten.append(True)
    loop.split_in_two(loop.table, [0, 1])
    assert forgotten == [True]


# A step matches transformers and PyTorch


def make_loop(recipe: Recipe, directory: Path, rows: int, steps: int = 3) -> tuple[Loop, list[Event]]:
    """A loop over the recipe's rows, `rows` of them per step."""
    prepared = prepare(recipe, load_tokenizer(recipe.base))
    model, objective = trainable_model(recipe, torch.float32, CPU)
    events: list[Event] = []
    tokens = int(prepared.train.lengths[:rows].sum())
    batches = Batches(
        prepared.train, tokens_per_step=tokens, tokens_per_batch=tokens // 2, pack=True, shuffle=False, seed=0
    )
    loop = Loop(
        model=model,
        objective=objective,
        batches=batches,
        held_out=held_out_evaluation(
            model, objective, recipe.objective.head, prepared.held_out, range(len(prepared.held_out))
        ),
        evaluate_every=1,
        masters=MasterWeights(model.named_parameters(), recipe.train),
        train=recipe.train,
        total_steps=steps,
        peak_learning_rate=1e-2,
        tokens_per_batch=tokens,
        directory=directory,
        events=Events(events.append),
        device=CPU,
    )
    return loop, events


def recipe_of(model: Path, rows: Path, method: Any = "full", **train: Any) -> Recipe:
    settings = {"steps": 3, "precision": "fp32", **train}
    data = {"train": str(rows), "held_out": 0.2, "cache": False}
    return Recipe.load({"base": str(model), "data": data, "method": method, "train": settings})


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_a_steps_loss_norm_and_weights_match_transformers_and_pytorch(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path, max_norm: float
) -> None:
    """Over three steps, with an eps that turns AdamW into gradient descent, so that no factor is hidden."""
    recipe = recipe_of(
        tiny_model, write_rows(30), **{**GRADIENT_DESCENT, "max_grad_norm": max_norm}, schedule="constant"
    )
    loop, events = make_loop(recipe, tmp_path, 5)
    loop.peak_learning_rate = 0.3 * GRADIENT_DESCENT["eps"]
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
    table = loop.batches.table
    for step in range(3):
        rows = [row for batch in loop.batches.step(step) for row in batch]
        assert len(loop.batches.step(step)) > 1
        count = sum(int(table[row][1][1:].sum()) for row in rows)
        total = torch.zeros(())
        for row in rows:
            ids, loss_mask = (torch.from_numpy(array) for array in table[row])
            labels = torch.where(loss_mask, ids.long(), -100)
            output = theirs(input_ids=ids.long()[None], labels=labels[None])
            total = total + output.loss * int(loss_mask[1:].sum())
        (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter -= 0.3 * parameter.grad
                parameter.grad = None
        loop.step()
        event = named(events, "step")[-1]
        assert event["loss"] == pytest.approx(float(total) / count, rel=1e-5)
        assert event["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
        assert event["loss_tokens"] == count
        assert event["tokens"] == sum(int(table.lengths[row]) for row in rows)
        assert (norm > max_norm) == (max_norm == 0.5)
    ours = dict(loop.model.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours[name], parameter, rtol=1e-4, atol=2e-6, msg=name)


# Evaluation


@pytest.mark.parametrize("training", [True, False])
def test_held_out_losses_use_evaluation_mode_and_restore_the_mode(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path, training: bool
) -> None:
    lora = {"kind": "lora", "rank": 4, "dropout": 0.5}
    loop, _ = make_loop(recipe_of(tiny_model, write_rows(30), lora), tmp_path, 5)
    with torch.no_grad():
        for name, parameter in loop.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    model = loop.model.train(training)
    rows, held_out = [3, 0, 2], loop.batches.table
    first, second = (held_out_losses(model, loop.objective, held_out, rows, 1000) for _ in range(2))
    assert model.training == plain_model(model).training == training
    assert np.array_equal(first.sums, second.sums)
    model.eval()
    for index, row in enumerate(rows):
        ids, loss_mask = (torch.from_numpy(array) for array in held_out[row])
        inputs = {"input_ids": ids.long()[None], "position_ids": torch.arange(len(ids))[None]}
        logits = model(**inputs, document_lengths=[len(ids)]).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:].long(), reduction="none")[loss_mask[1:]]
        assert first.sums[index] == pytest.approx(float(losses.detach().double().sum()), rel=1e-5)
        assert first.counts[index] == int(loss_mask[1:].sum())


# Resuming


@pytest.fixture(scope="module")
def stopped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a base, a teacher, a chat template, rows, and a run that was killed after a step."""
    directory = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny_model, directory / "base")
    shutil.copytree(tiny_model, directory / "teacher")
    (directory / "template.jinja").write_text(CHATML, encoding="utf-8")
    recipe = {
        "base": {"path": str(directory / "base"), "chat_template": str(directory / "template.jinja")},
        "data": {"train": rows_in(directory / "rows.jsonl", [f"It is {n}." for n in range(20)]), "cache": False},
        "objective": {"kind": "distillation", "teacher": str(directory / "teacher")},
        "train": {"steps": 2, "checkpoint_every": 1, "tokens_per_step": 64, "precision": "fp32"},
    }

    def kill(event: Event) -> None:
        if event["event"] == "checkpoint":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, directory / "run", subscribers=[kill])
    return directory


def other_weight(file: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, file, {"format": "pt"})


def other_vocabulary(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(directory)


CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "base": ("base: .* has changed since", lambda directory: other_weight(directory / "base" / "model.safetensors")),
    "teacher": (
        "objective.teacher has changed",
        lambda directory: other_weight(directory / "teacher" / "model.safetensors"),
    ),
    "template": (
        "tokenizer or chat template .* has changed",
        lambda directory: (directory / "template.jinja").write_text(CHATML + "!", encoding="utf-8") and None,
    ),
    "tokenizer": ("tokenizer or chat template .* has changed", lambda directory: other_vocabulary(directory / "base")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_resuming_is_refused_after_the_runs_inputs_changed(stopped: Path, tmp_path: Path, change: str) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(stopped, kept)
    message, apply_change = CHANGES[change]
    try:
        apply_change(stopped)
        with pytest.raises(UserError, match=message):
            tunesmith.resume(stopped / "run")
    finally:
        shutil.rmtree(stopped)
        shutil.copytree(kept, stopped)


def test_an_unchanged_run_is_resumed_even_without_a_recorded_tokenizer(stopped: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(stopped, kept)
    try:
        recorded = json.loads((stopped / "run" / "provenance.json").read_text(encoding="utf-8"))
        del recorded["tokenizer"]
        (stopped / "run" / "provenance.json").write_text(json.dumps(recorded), encoding="utf-8")
        run = tunesmith.resume(stopped / "run")
        assert run.finished
        assert [event["step"] for event in named(run.events(), "step")] == [1, 2]
    finally:
        shutil.rmtree(stopped)
        shutil.copytree(kept, stopped)


def test_a_resumed_run_keeps_its_reduced_batch_size(tmp_path: Path) -> None:
    loop, _ = loop_over(tmp_path, POINTS, batch=2, step=4, steps=2, objective=SquaredErrors(before=OutOnce(2)))
    fit(loop)
    again, _ = loop_over(tmp_path, POINTS, batch=2, step=4, steps=3)
    tensors, again.state = load_checkpoint(tmp_path / "checkpoints" / "step-000002")
    again.masters.restore(tensors)
    assert replace(again.state, seconds=loop.state.seconds) == loop.state
    assert weight_of(again) == weight_of(loop)
    assert again.batches_within(again.table, [0, 1]) == [[0], [1]]


# Pruning


@pytest.mark.parametrize(
    ("keep", "best", "remaining"),
    [
        (1, 2, [2, 6]),
        (2, 2, [2, 5, 6]),
        (2, 6, [5, 6]),
        (2, 5, [5, 6]),
        (1, 0, [0, 6]),
        (3, None, [4, 5, 6]),
        (9, 3, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_pruning_keeps_the_newest_checkpoints_and_the_best_one(
    tmp_path: Path, keep: int, best: int | None, remaining: list[int]
) -> None:
    for step in range(0 if best == 0 else 1, 7):
        best_so_far = best if best is not None and step >= best else None
        save_checkpoint(
            tmp_path, {"master": torch.tensor([float(step)])}, LoopState(step=step, best_step=best_so_far), 9
        )
    save_checkpoint(tmp_path, {"master": torch.tensor([6.0])}, LoopState(step=6, best_step=best), keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:06d}" for step in remaining]
    for step in remaining:
        tensors, state = load_checkpoint(tmp_path / f"step-{step:06d}")
        assert (float(tensors["master"][0]), state.step) == (float(step), step)


# The output's precision


def save_random_masters(
    recipe: Recipe, dtype: torch.dtype, directory: Path
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The saved tensors of a run with random masters, and the masters by name."""
    model, _ = trainable_model(recipe, dtype, CPU)
    masters = MasterWeights(model.named_parameters(), recipe.train)
    masters.flat.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(2))
    masters.finish()
    path = save_output(Run(directory), model, masters, load_tokenizer(recipe.base), recipe)
    assert path == Run(directory).output
    return saved_tensors(Run(directory)), {name: master.clone() for name, master in masters.unrounded().items()}


@pytest.mark.parametrize(
    ("stored", "trained", "expected"),
    [
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32, torch.float16),
        (torch.float16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_model_is_saved_in_its_bases_dtype_but_no_wider_than_it_was_trained(
    tiny_model: Path, tmp_path: Path, stored: torch.dtype, trained: torch.dtype, expected: torch.dtype
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=stored).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(base)
    tensors, masters = save_random_masters(recipe_of(base, tmp_path / "rows.jsonl"), trained, tmp_path)
    assert set(tensors) == set(masters)
    for name, tensor in tensors.items():
        assert tensor.dtype == expected
        assert torch.equal(tensor, masters[name].to(expected)), name
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == str(expected).removeprefix("torch.")
    assert (tmp_path / "model" / "tokenizer.json").exists()


@pytest.mark.parametrize("trained", [torch.float32, torch.bfloat16])
def test_an_adapter_is_saved_as_its_fp32_masters_in_any_precision(
    tiny_model: Path, tmp_path: Path, trained: torch.dtype
) -> None:
    (tmp_path / ".adapter.partial").mkdir()
    (tmp_path / ".adapter.partial" / "rest").write_text("left by a run that was killed", encoding="utf-8")
    recipe = recipe_of(tiny_model, tmp_path / "rows.jsonl", {"kind": "lora", "rank": 2})
    tensors, masters = save_random_masters(recipe, trained, tmp_path)
    assert {name.replace(".default", "") for name in masters} == set(tensors)
    for name, tensor in masters.items():
        assert tensors[name.replace(".default", "")].dtype == torch.float32
        assert torch.equal(tensors[name.replace(".default", "")], tensor), name
    assert not (tmp_path / "adapter" / "rest").exists()
    assert (tmp_path / "adapter" / "tokenizer.json").exists()
