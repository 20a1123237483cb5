"""The command line's output and exit codes: 0 done, 2 user error, 130 interrupted; never a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import typed


def run_process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunesmith", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def write_recipe(directory: Path, model: Path, rows: Path, steps: int = 4) -> Path:
    recipe = {
        "base": str(model),
        "data": {"train": str(rows), "held_out": 0.1},
        "method": {"kind": "lora", "rank": 2},
        "train": {"steps": steps, "tokens_per_step": 256, "precision": "fp32", "checkpoint_every": 2},
    }
    file = directory / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML too
    return file


def test_train_writes_the_files_and_events_that_other_tools_read(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path, tiny_model, write_rows())
    monkeypatch.chdir(tmp_path)
    done = typed("train", "recipe.yaml", "--run", "run", "--set", "train.learning_rate=1e-3")
    assert done.returncode == 0, done.stderr
    assert {"recipe.yaml", "metrics.jsonl", "report.html", "adapter"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert {"step", "loss", "grad_norm", "learning_rate", "tokens", "loss_tokens", "seconds"} <= steps[0].keys()
    assert max(step["learning_rate"] for step in steps) == 1e-3
    assert max(len(line) for line in done.stdout.splitlines()) <= 80 or "run" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('{"train": {"learning_rat": 1}}', "train.learning_rat is not a field. Did you mean train.learning_rate?"),
        ('{"method": {"kind": "lorra"}}', "Did you mean lora?"),
        ('{"data": {"train": "nowhere.jsonl"}}', "nowhere.jsonl: no such file or directory"),
        ('{"base": "./no-model"}', "does not exist. Give a model directory, a GGUF file, a hub name, or a short name"),
        ('{"base": "embedded@nf4"}', "embedded@nf4 does not exist. Give a model directory"),  # no name of the hub's
        ('{"data": {"train": "rows.jsonl", "max_length": 16}}', "longer than data.max_length"),
        ("nonsense", "a recipe is a mapping"),
        ("{", "not valid YAML"),
    ],
)
def test_bad_input_gives_one_error_line_and_creates_no_run(
    change: str,
    message: str,
    tiny_model: Path,
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_rows()
    recipe = {"base": str(tiny_model), "data": {"train": "rows.jsonl"}, "train": {"steps": 2}}
    text = json.dumps(recipe | json.loads(change)) if change.startswith('{"') else change
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = typed("train", "recipe.yaml", "--run", "run")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_process_with_bad_input_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    done = run_process("train", "--resume", "nothing", cwd=tmp_path)
    assert done.returncode == 2
    assert "is not a run" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_train_without_a_recipe_and_demo_in_a_used_directory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = typed("train")
    assert (done.returncode, "Give a recipe" in done.stderr) == (2, True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "note.txt").write_text("mine")
    (tmp_path / "recipe.yaml").write_text("data: {train: x.jsonl}")
    done = typed("demo", "--directory", "here")
    assert (done.returncode, "not an empty directory" in done.stderr) == (2, True)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["note.txt"]


@pytest.mark.parametrize("words", [("schema", "--output", "FILE"), ("keys", "add", "FILE", "someone")])
def test_a_file_that_cannot_be_written_is_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "missing" / "file"
    done = typed(*(str(file) if word == "FILE" else word for word in words))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {file} cannot be written: No such file or directory.\n"


def test_help_loads_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['tunesmith', '--help']\nfrom tunesmith.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "init", "train", "evaluate", "report", "generate", "chat", "export", "runs", "data", "schema"):
        assert verb in done.stdout
