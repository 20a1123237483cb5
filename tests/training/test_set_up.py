"""A run from its recipe: how it is built, its first and last events, and its warnings."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bytewise import byte_tokenizer
from small_models import objective_of, small_model
from toy_loop import TOKENS, loop_over, named, table_of, weight_of

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import Prepared
from tunesmith.data.report import DataReport
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.evaluations import Evaluations
from tunesmith.engine.loop import Loop
from tunesmith.models.architecture import blocks
from tunesmith.run import Event, Run
from tunesmith.training import saving
from tunesmith.training.saving import restore_best
from tunesmith.training.set_up import emit_start, loop_of

CPU = torch.device("cpu")
POINTS = [(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (1.5, 0.5)]


def recipe_of(**parts: Any) -> Recipe:
    return Recipe.model_validate({"base": {"path": "embedded"}, "data": {"train": "rows.jsonl"}, **parts})


def prepared_rows(**counts: Any) -> Prepared:
    table = table_of(POINTS)
    return Prepared(table, table, DataReport(**counts), {})


# What is built


def build(optimizer: str, directory: Path) -> Loop:
    """The loop of a run that trains all weights of a small Llama."""
    model = small_model("llama", dtype=torch.float32)
    recipe = recipe_of(method="full", train={"optimizer": optimizer, "steps": 1, "weight_decay": 0.1})
    prepared = prepared_rows()
    batch_plan = BatchPlan.of(recipe, prepared.train)
    return loop_of(
        recipe, Run(directory), model, objective_of("text").build(), prepared, batch_plan, CPU, byte_tokenizer()
    )


def trained_by(rule: torch.optim.Optimizer) -> int:
    """Numbers that the optimizer updates."""
    return sum(parameter.numel() for group in rule.param_groups for parameter in group["params"])


def test_muon_trains_the_matrices_in_blocks_and_adamw_everything_else(tmp_path: Path) -> None:
    loop = build("muon", tmp_path)
    muon, adamw = loop.masters.rules
    assert (type(muon), type(adamw)) == (torch.optim.Muon, torch.optim.AdamW)
    in_blocks = sum(weight.numel() for block in blocks(loop.model) for weight in block.parameters() if weight.ndim == 2)
    assert trained_by(muon) == in_blocks > 0
    assert trained_by(adamw) == len(loop.masters.flat) - in_blocks > 0


def test_adamw_trains_all_weights_in_two_groups_with_and_without_decay(tmp_path: Path) -> None:
    loop = build("adamw", tmp_path)
    (adamw,) = loop.masters.rules
    assert type(adamw) is torch.optim.AdamW
    assert trained_by(adamw) == len(loop.masters.flat) == sum(each.numel() for each in loop.model.parameters())
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.1, 0.0]


# The first events


def started(recipe: Recipe, directory: Path, rows_per_batch: int, **counts: Any) -> list[Event]:
    """The events before the first pass, of a step of four rows."""
    loop, events = loop_over(directory, POINTS, batch=rows_per_batch, step=4, steps=1)
    emit_start(loop, recipe, Run(directory), prepared_rows(**counts), torch.float32, Evaluations(1, [], 0))
    return events


def test_a_run_starts_with_the_counts_of_its_data(tmp_path: Path) -> None:
    events = started(recipe_of(), tmp_path, 2, rows=31, tokens=4 * TOKENS, cached=True)
    assert [event["event"] for event in events[:2]] == ["start", "data"]
    assert (events[1]["rows"], events[1]["tokens"], events[1]["cached"]) == (31, 4 * TOKENS, True)


def test_a_run_on_a_quantized_base_starts_with_the_weights_format(tmp_path: Path) -> None:
    start = started(recipe_of(base={"path": "embedded", "weights": "nf4"}), tmp_path, 2)[0]
    assert (start["weights"], start["precision"]) == ("nf4", "float32")


@pytest.mark.parametrize(
    ("objective", "rows_per_batch", "warned"),
    [
        pytest.param("embedding", 1, 4, id="rows without another one to compare with"),
        pytest.param("embedding", 3, 1, id="a last row alone"),
        pytest.param("embedding", 2, 0, id="pairs of rows"),
        pytest.param("text", 1, 0, id="rows are not compared"),
    ],
)
def test_only_a_contrastive_run_warns_about_batches_of_one_row(
    tmp_path: Path, objective: str, rows_per_batch: int, warned: int
) -> None:
    events = started(recipe_of(objective=objective), tmp_path, rows_per_batch)
    messages = [event["message"] for event in named(events, "warning") if "hold a single row" in event["message"]]
    assert len(messages) == (warned > 0)
    assert all(message.startswith(f"{warned} batches hold a single row.") for message in messages)


# The last event


def test_the_last_event_has_the_seconds_of_the_whole_run_and_the_output(
    tiny_model: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    def stop(event: Event) -> None:
        if event["event"] == "step":
            signal.raise_signal(signal.SIGINT)

    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows(8)), "held_out": 0.0, "cache": False},
        "train": {"steps": 2, "tokens_per_step": 64, "precision": "fp32"},
    }
    run = tunesmith.train(recipe, tmp_path / "run", subscribers=[stop])
    timed = ("step", "checkpoint")
    (step,), (checkpoint,) = (named(run.events(), kind) for kind in timed)
    end = run.events()[-1]
    assert end == {"event": "end", "reason": "interrupted", "step": 1, "seconds": end["seconds"], "output": None}
    assert end["seconds"] > step["seconds"] + checkpoint["seconds"], "and the start"
    run = tunesmith.resume(run.directory)
    last = run.events()[-1]
    done = {"reason": "done", "step": 2, "seconds": last["seconds"], "output": str(tmp_path / "run" / "adapter")}
    assert last == {"event": "end", **done}
    (plan,) = named(run.events(), "plan")
    of_both = sum(event["seconds"] for kind in timed for event in named(run.events(), kind))
    assert last["seconds"] > plan["measured"]["time"]["total_seconds"], "which is since the resume"
    assert last["seconds"] > of_both
    assert [len(named(run.events(), kind)) for kind in ("plan", "end")] == [1, 1], "those of the interruption are gone"
    starts = [(event["step"], event["base"], event["weights"]) for event in named(run.events(), "start")]
    assert starts == [(0, str(tiny_model), "float32"), (1, str(tiny_model), "float32")]


@pytest.fixture
def short(tiny_model: Path, write_rows: Callable[..., Path]) -> dict[str, Any]:
    """A recipe of three steps."""
    return {
        "base": str(tiny_model),
        "data": {"train": str(write_rows(20)), "held_out": 0.2, "cache": False},
        "train": {"steps": 3, "tokens_per_step": 64, "precision": "fp32"},
    }


def test_measured_times_are_of_the_steps_since_the_run_was_resumed(short: dict[str, Any], tmp_path: Path) -> None:
    with tunesmith.Trainer(short, tmp_path / "run") as trainer:
        for _ in range(2):
            trainer.step()
        trainer.checkpoint()
    with tunesmith.Trainer.resume(tmp_path / "run") as trainer:
        run = trainer.fit()
    step, plan = named(run.events(), "step")[-1], named(run.events(), "plan")[-1]
    assert step["step"] == 3
    time = plan["measured"]["time"]
    assert time["parts"]["training"] == time["seconds_per_step"] == pytest.approx(step["seconds"])
    assert time["tokens_per_second"] == pytest.approx(step["tokens"] / step["seconds"])


def test_the_seconds_of_a_run_include_its_saving_and_are_no_more_than_it_took(
    short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = saving.save_output

    def save_slowly(*given: Any) -> Path:
        time.sleep(0.3)
        return save(*given)

    monkeypatch.setattr(saving, "save_output", save_slowly)
    started = time.perf_counter()
    run = tunesmith.train(short, tmp_path / "run")
    took = time.perf_counter() - started
    plan, end = run.events()[-2:]
    parts = plan["measured"]["time"]["parts"]
    assert parts["checkpoints"] >= 0.3
    assert end["seconds"] == pytest.approx(sum(parts.values()))
    assert end["seconds"] <= took


@pytest.mark.parametrize("early_stopping", [None, {"patience": 1}])
def test_the_best_weights_are_restored_with_early_stopping_alone(tmp_path: Path, early_stopping: Any) -> None:
    loop, _ = loop_over(tmp_path, POINTS, early_stopping=early_stopping)
    weights = []
    for _ in range(2):
        loop.step()
        loop.state.best_step = 1
        loop.checkpoint()
        weights.append(weight_of(loop))
    assert weights[0] != weights[1]
    restore_best(Run(tmp_path), loop)
    assert weight_of(loop) == weights[1 if early_stopping is None else 0]


def test_a_plain_run_warns_about_nothing(short: dict[str, Any], tmp_path: Path) -> None:
    run = tunesmith.train(short, tmp_path / "run")
    assert named(run.events(), "warning") == []
