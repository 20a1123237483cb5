"""Worker processes give the same tokens in order, and end with their parent."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from bytewise import byte_tokenizer

from tunesmith.config.recipe import Recipe
from tunesmith.data import tokenize
from tunesmith.data.example import Completion, Example, Source
from tunesmith.data.prepare import prepare
from tunesmith.data.render import Renderer, Rendering
from tunesmith.models.load import load_tokenizer

ROWS = 6_000


def rows(directory: Path) -> Path:
    """One of the rows cannot be trained on."""
    file = directory / "rows.jsonl"
    answers = ["<|im_end|>" if number == 4_000 else str(number) for number in range(ROWS)]
    lines = [
        f'{{"question": "What is {number} and {number % 7}?", "answer": "{answer}"}}'
        for number, answer in enumerate(answers)
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def recipe_of(base: Path, file: Path) -> Recipe:
    data = {"train": str(file), "held_out": 0.1, "cache": False, "skip_unusable": True}
    return Recipe.load({"base": str(base), "data": data, "method": "lora"})


def test_several_processes_give_the_same_tokens_as_one(tiny_model, tmp_path, monkeypatch):
    recipe = recipe_of(tiny_model, rows(tmp_path))
    tokenizer = load_tokenizer(recipe.base)
    frozen = gc.get_freeze_count()
    started = []
    workers = tokenize.workers
    monkeypatch.setattr(tokenize, "workers", lambda *args: started.append(args) or workers(*args))
    monkeypatch.setattr(tokenize, "cores", lambda: 1)
    alone = prepare(recipe, tokenizer)
    assert not started
    monkeypatch.setattr(tokenize, "cores", lambda: 3)
    together = prepare(recipe, tokenizer)
    assert started
    assert multiprocessing.active_children() == []
    assert gc.get_freeze_count() <= frozen
    assert asdict(together.report) == asdict(alone.report)
    assert (together.report.rows, together.report.unusable) == (ROWS, 1)
    for one, other in ((alone.train, together.train), (alone.held_out, together.held_out)):
        for name in ("ids", "loss_mask", "offsets", "file", "row"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.files == other.files


class Learned:
    """Renders completions, of which those with these numbers have no loss."""

    def __init__(self, without_loss: list[int]) -> None:
        self.without_loss = without_loss

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        rendering = renderer.completions(example)
        parts = [
            replace(part, loss_spans=() if number in self.without_loss else part.loss_spans)
            for number, part in enumerate(rendering.completions, 1)
        ]
        return [replace(rendering, completions=tuple(parts))]


@pytest.mark.parametrize("without_loss", [[], [1], [2], [2, 3]])
def test_the_first_completion_of_which_nothing_is_learned_is_named(without_loss: list[int]) -> None:
    answers = [Completion(({"role": "assistant", "content": text},), 0.0) for text in ("a", "b", "c")]
    question = {"role": "user", "content": "?"}
    example = Example(Source("rows", 3), messages=(question,), completions=tuple(answers))
    chunk = tokenize.Tokenizer(Learned(without_loss), Renderer(byte_tokenizer()), 0.0).chunk([example])
    if not without_loss:
        assert (chunk.unusable, len(chunk.sides[0]), len(chunk.sides[1])) == ([], 1, 0)
        assert chunk.longest == len(chunk.sides[0][0][0])
        return
    reason = f"completion {without_loss[0]}: no token of it has loss: nothing is left of the answer after rendering"
    assert chunk.unusable == [(Source("rows", 3), reason)]
    assert (len(chunk.sides[0]), chunk.longest) == (0, 0)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="other systems use one process")
def test_worker_processes_end_with_their_parent(tiny_model, tmp_path):
    script = """
import os, sys, time
from pathlib import Path
from tunesmith.data import tokenize
from tunesmith.data.prepare import prepare
from tunesmith.models.load import load_tokenizer
from tunesmith.config.recipe import Recipe
def slow(examples):
    (Path(sys.argv[3]) / str(os.getpid())).touch()
    time.sleep(60)
tokenize._tokenize_chunk, tokenize._cores = slow, lambda: 2
recipe = Recipe.load({"base": sys.argv[1], "data": {"train": sys.argv[2], "cache": False}, "method": "lora"})
prepare(recipe, load_tokenizer(recipe.base))
"""
    workers = tmp_path / "workers"
    workers.mkdir()
    process = subprocess.Popen([sys.executable, "-c", script, str(tiny_model), str(rows(tmp_path)), str(workers)])
    deadline = time.monotonic() + 60
    while len(list(workers.iterdir())) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pids = [int(each.name) for each in workers.iterdir()]
    assert len(pids) == 2
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, pids))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
