"""A run killed at any moment resumes to the same bytes as an uninterrupted run."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command import typed

import tunesmith
from tunesmith.engine import checkpoint as checkpoints
from tunesmith.engine.checkpoint import LoopState, latest_checkpoint, save_checkpoint

STEPS = 40


def recipe(model: Path, rows: Path, **train: object) -> dict[str, object]:
    return {
        "base": str(model),
        "data": {"train": str(rows), "held_out": 0.1},
        "method": {"kind": "lora", "rank": 4, "dropout": 0.1},
        "train": {
            "steps": STEPS,
            "tokens_per_step": 256,
            "learning_rate": 1e-2,
            "precision": "fp32",
            "checkpoint_every": 2,
            "evaluate_every": 10,
            **train,
        },
    }


def digest(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def start(arguments: list[str], directory: Path, threads: int = 1) -> subprocess.Popen[str]:
    script = "import sys; from tunesmith.cli import main; sys.argv[0] = 'tunesmith'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, "train", *arguments],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The rows, the recipe's text and the adapter's hash of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    rows = directory / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"{n} + {n}?", "answer": f"It is {2 * n}."}) + "\n" for n in range(80)),
        encoding="utf-8",
    )
    text = yaml.safe_dump(recipe(tiny_model, rows))
    (directory / "recipe.yaml").write_text(text, encoding="utf-8")
    tunesmith.train(directory / "recipe.yaml", directory / "run")
    return rows, text, digest(directory / "run")


@pytest.mark.parametrize("moment", [0, *(pytest.param(moment, marks=pytest.mark.long) for moment in range(1, 10))])
def test_a_run_killed_at_a_random_moment_resumes_to_the_same_bytes(
    uninterrupted: tuple[Path, str, str], tmp_path: Path, moment: int
) -> None:
    _, text, expected = uninterrupted
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    run = tmp_path / "run"
    process = start(["recipe.yaml", "--run", "run"], tmp_path, threads=1 + moment % 2)
    metrics = run / "metrics.jsonl"
    rng = random.Random(moment)
    # Every third kill happens while a checkpoint is being written.
    kill_step, during_write = rng.randrange(1, STEPS), moment % 3 == 0
    while process.poll() is None:
        steps = metrics.read_text(encoding="utf-8").count('"event": "step"') if metrics.exists() else 0
        writing = run.exists() and any(run.glob("checkpoints/.*partial"))
        if steps >= kill_step and (writing or not during_write):
            time.sleep(rng.random() * 0.01)
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.0005)
    process.wait()
    if not (run / "adapter").exists():
        tunesmith.resume(run)
    assert digest(run) == expected
    steps = [event["step"] for event in read_events(run) if event["event"] == "step"]
    assert steps == list(range(1, STEPS + 1))


def read_events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_ctrl_c_finishes_the_step_saves_everything_and_prints_how_to_resume(
    uninterrupted: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text, expected = uninterrupted
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    ended = threading.Event()

    def press() -> None:
        while not (metrics.exists() and '"event": "step"' in metrics.read_text(encoding="utf-8")):
            if ended.wait(0.001):
                return
        os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=press)
    user.start()
    done = typed("train", "recipe.yaml", "--run", "run")
    ended.set()
    user.join()
    assert done.returncode == 130
    assert "--resume" in done.stdout + done.stderr
    last = max(event["step"] for event in read_events(tmp_path / "run") if event["event"] == "step")
    saved = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert saved.name == f"step-{last:06d}"
    tunesmith.resume(tmp_path / "run")
    assert digest(tmp_path / "run") == expected


def test_resuming_with_changed_data_is_refused(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows = write_rows()
    run = tunesmith.train(recipe(tiny_model, rows, steps=2), tmp_path / "run").directory
    (run / "adapter").rename(run / "gone")
    rows.write_text(rows.read_text(encoding="utf-8") + '{"question": "new", "answer": "row"}\n', encoding="utf-8")
    with pytest.raises(tunesmith.UserError, match=r"rows\.jsonl has changed"):
        tunesmith.resume(run)


def test_resuming_with_deleted_checkpoints_is_refused(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    run = tunesmith.train(recipe(tiny_model, write_rows(), steps=4), tmp_path / "run").directory
    (run / "adapter").rename(run / "gone")
    (run / "checkpoints").rename(run / "elsewhere")
    with pytest.raises(tunesmith.UserError, match="deleted"):
        tunesmith.resume(run)


def test_resuming_from_a_damaged_checkpoint_is_refused(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    run = tunesmith.train(recipe(tiny_model, write_rows(), steps=4), tmp_path / "run").directory
    (run / "adapter").rename(run / "gone")
    saved = latest_checkpoint(run / "checkpoints")
    assert saved is not None
    state = saved / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(tunesmith.UserError, match="damaged"):
        tunesmith.resume(run)


def test_a_finished_run_is_not_run_again(tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path) -> None:
    run = tunesmith.train(recipe(tiny_model, write_rows(), steps=2), tmp_path / "run").directory
    with pytest.raises(tunesmith.UserError, match="has finished"):
        tunesmith.resume(run)
    with pytest.raises(tunesmith.UserError, match="already contains a run"):
        tunesmith.train(recipe(tiny_model, write_rows(), steps=2), run)


def test_a_full_disk_leaves_earlier_checkpoints_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save_checkpoint(tmp_path, {}, LoopState(step=1), keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(tunesmith.UserError, match="No space left on device"):
        save_checkpoint(tmp_path, {}, LoopState(step=2), keep=1)
    assert latest_checkpoint(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
