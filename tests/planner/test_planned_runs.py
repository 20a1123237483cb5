"""A run follows its plan: refused before loading, kept within its limit, and able to continue when memory runs out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tunesmith.engine.allocator import arena
from tunesmith.engine.memory import split_in_two
from tunesmith.errors import UserError
from tunesmith.planner.shapes import HERE


def recipe_for(base: Path, rows: Path, **train: Any) -> dict[str, Any]:
    settings = {"steps": 3, "tokens_per_step": 512, "precision": "fp32", **train}
    return {"base": str(base), "data": {"train": str(rows), "held_out": 0.1, "max_length": 64}, "train": settings}


def test_a_base_that_does_not_fit_is_refused_before_its_weights_are_read(tmp_path: Path, write_rows: Any) -> None:
    huge = tmp_path / "huge"
    shutil.copytree(HERE / "llama-3-70b", huge)  # a config without any weights
    for file in tunesmith.embedded_base().glob("*token*"):
        shutil.copy(file, huge)
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "A line of text that goes on for a while."}\n' * 60, encoding="utf-8")
    recipe = recipe_for(huge, text) | {"method": "full", "objective": "text"}
    with pytest.raises(UserError, match=r"GB are needed and .* GB are free"):
        tunesmith.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_reports_prediction_and_measurement_in_the_same_format(
    tiny_model: Path, tmp_path: Path, write_rows: Any
) -> None:
    run = tunesmith.train(recipe_for(tiny_model, write_rows()), tmp_path / "run")
    events = run.events()
    (plan,) = (event for event in events if event["event"] == "plan")
    (forecast,) = (event for event in events if event["event"] == "forecast")
    assert forecast == {"event": "forecast", **plan["predicted"]}
    for side in (plan["predicted"], plan["measured"]):
        assert side["memory"]["peak_bytes"] == sum(side["memory"]["parts"].values())
        assert set(side["time"]) == {"seconds_per_step", "tokens_per_second", "total_seconds", "parts"}
        assert {"fits", "device"} <= set(side)


RUN = """
import json, sys
import tunesmith
events = tunesmith.train(json.loads(sys.argv[1]), sys.argv[2]).events()
plan = next(event for event in events if event["event"] == "plan")
print(plan["predicted"]["memory"]["peak_bytes"], plan["measured"]["memory"]["peak_bytes"])
"""


@pytest.mark.long
def test_the_predicted_peak_is_right_however_large_the_parent_process(tmp_path: Path, write_rows: Any) -> None:
    ballast = torch.ones(2**28)  # a gigabyte
    recipe = recipe_for(Path("embedded"), write_rows(200), tokens_per_step=2048, precision="fp32")
    command = [sys.executable, "-c", RUN, json.dumps(recipe), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    predicted, measured = map(int, done.stdout.split())
    assert int(ballast[0]) == 1
    assert measured < ballast.nbytes
    assert predicted == pytest.approx(measured, rel=0.08 if arena() is not None else 0.15)


def test_a_memory_limit_keeps_the_losses_and_its_choices_are_reported(
    tiny_model: Path, tmp_path: Path, write_rows: Any
) -> None:
    rows = write_rows()
    unlimited = tunesmith.train(recipe_for(tiny_model, rows), tmp_path / "unlimited")
    limited = tunesmith.train(recipe_for(tiny_model, rows, memory_limit="64GB"), tmp_path / "limited")

    def losses(run: Any) -> list[float]:
        return [event["loss"] for event in run.events() if event["event"] == "step"]

    assert losses(limited) == pytest.approx(losses(unlimited), rel=1e-6)
    memory = next(event for event in limited.events() if event["event"] == "memory")
    assert (memory["checkpointed"], memory["blocks"], memory["tokens_per_batch"]) == (0, 2, 512)
    with pytest.raises(UserError, match=r"train.memory_limit: 0.01 GB are too few.* Set memory_limit: "):
        tunesmith.train(recipe_for(tiny_model, rows, memory_limit="10MB"), tmp_path / "none")


def test_a_batch_is_split_in_two_between_rows() -> None:
    assert split_in_two([7, 8, 9], [10, 10, 20]) == ([7, 8], [9])
    assert split_in_two([7, 8], [100, 1]) == ([7], [8])
    assert split_in_two([1, 2, 3, 4], [5, 5, 5, 5]) == ([1, 2], [3, 4])


RUNS_OUT = """
import json, resource, sys
import tunesmith
from tunesmith.planner.measure import forget_peak

def pages() -> int:
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

def watch(event):
    if event["event"] == "data":  # after loading, before the first batch
        room = pages() + int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
    if event["event"] == "evaluation":
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

run = tunesmith.train(json.loads(sys.argv[1]), sys.argv[3], subscribers=[watch])
print(json.dumps([event for event in run.events()]))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="address space limits need Linux")
def test_a_run_that_is_out_of_memory_continues_with_half_the_batch(tmp_path: Path, write_rows: Any) -> None:
    recipe = {
        "base": "embedded",
        "data": {"train": str(write_rows(300)), "held_out": 0.1, "max_length": 64},
        "train": {"steps": 2, "tokens_per_step": 4096, "tokens_per_batch": 4096, "precision": "fp32"},
    }

    def events(room: int, name: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-c", RUNS_OUT, json.dumps(recipe), str(room), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-800:]
        return json.loads(done.stdout.splitlines()[-1])

    short, ample = events(100_000_000, "short"), events(64_000_000_000, "ample")
    warnings = [event["message"] for event in short if event["event"] == "warning"]
    assert any("Memory ran out with" in message for message in warnings), warnings

    def steps(run_events: list[dict[str, Any]]) -> list[tuple[float, int]]:
        return [(event["loss"], event["tokens"]) for event in run_events if event["event"] == "step"]

    for (loss, tokens), (expected, planned) in zip(steps(short), steps(ample), strict=True):
        assert tokens == planned  # the step keeps its size
        assert loss == pytest.approx(expected, rel=1e-4)


def test_planning_draws_no_random_numbers_of_the_run(tiny_model: Path, tmp_path: Path, write_rows: Any) -> None:
    """Planning has no side effects: two runs in one process give the same bytes."""
    recipe = recipe_for(tiny_model, write_rows())
    one, other = (tunesmith.train(recipe, tmp_path / name) for name in ("one", "other"))
    files = [run.directory / "adapter" / "adapter_model.safetensors" for run in (one, other)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert torch.tensor(1.0).item() == 1.0
