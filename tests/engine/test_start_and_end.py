"""What a run says when it starts, what it notes of where it came from, how it is stopped, and what it refuses."""

import hashlib
import json
import math
import platform
import signal
import subprocess
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matrix import make_bases
from toy_loop import SquaredErrors, loop_over, named

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.engine.checkpoint import latest_checkpoint, load_checkpoint, read_loop_state, save_checkpoint
from tunesmith.engine.interrupt import Interruption, listen_for_interrupts
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.output import save_output
from tunesmith.engine.provenance import provenance
from tunesmith.engine.trainable import trainable_model
from tunesmith.errors import UserError
from tunesmith.models.load import load_tokenizer
from tunesmith.run import Event, Run


def recipe_of(base: Path | str, rows: Path, **more: Any) -> dict[str, Any]:
    train = {"steps": 2, "tokens_per_step": 128, "precision": "fp32", **more.pop("train", {})}
    data = {"train": str(rows), "held_out": 0.0, "cache": False, **more.pop("data", {})}
    return {"base": str(base), "data": data, "train": train, **more}


# Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops_at_once(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with listen_for_interrupts() as interruption:
        assert not interruption.asked
        signal.raise_signal(number)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert {each: signal.getsignal(each) for each in before} == before
    assert Interruption.asked is False


def test_outside_the_main_thread_signals_are_left_as_they_are() -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[tuple[bool, bool]] = []

    def listen() -> None:
        with listen_for_interrupts() as interruption:
            found.append((interruption.asked, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [(False, True)]


def interrupted_after(directory: Path, step: int, steps: int) -> tuple[str, list[Event], int]:
    """Why a run ended that was asked to stop in that step, what it told, and where it stood."""
    interruption = Interruption()

    def ask(number: int) -> None:
        interruption.asked = number >= step

    loop, told = loop_over(
        directory, [(1.0, 2.0)] * steps, steps=steps, objective=SquaredErrors(before=ask), checkpoint_every=50
    )
    return loop.fit(interruption), told, loop.state.step


@pytest.mark.parametrize(("step", "reason"), [(3, "interrupted"), (6, "done")])
def test_a_run_that_is_asked_to_stop_ends_its_step_and_saves_it(tmp_path: Path, step: int, reason: str) -> None:
    found, told, last = interrupted_after(tmp_path, step, 6)
    assert (found, last) == (reason, step)
    assert [event["step"] for event in named(told, "checkpoint")] == [step]
    saved = latest_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    assert read_loop_state(saved)["step"] == step


def test_a_checkpoint_holds_where_the_loop_stands(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("12345", encoding="utf-8")
    loop, _ = loop_over(tmp_path, [(1.0, 2.0)] * 5, steps=5, objective=SquaredErrors([3.0, 2.5]), held_out=[(1.0, 1.0)])
    loop.train = loop.train.model_copy(update={"evaluate_every": 2})
    loop.fit(Interruption())
    state = load_checkpoint(tmp_path / "checkpoints" / "step-000005")[1]
    assert (state.step, state.tokens, state.metrics_bytes) == (5, 50, 5)
    assert state.threads == torch.get_num_threads()
    assert state.best_step in (4, 5)  # after the script the loss is the model's own
    assert 0 < state.seconds < 60
    assert state == loop.state


def test_checkpoints_keep_the_random_states_and_every_tensor(tmp_path: Path) -> None:
    loop, _ = loop_over(tmp_path, [(1.0, 2.0)])
    loop.step()
    torch.manual_seed(5)
    torch.rand(3)
    path = save_checkpoint(tmp_path, loop.masters.state(), loop.state, 1)
    expected = torch.rand(4)
    torch.rand(100)
    tensors, state = load_checkpoint(path)
    assert torch.equal(torch.rand(4), expected)
    assert state == loop.state
    assert set(tensors) == set(loop.masters.state())
    for name, tensor in loop.masters.state().items():
        assert torch.equal(tensors[name], tensor), name


def test_the_latest_checkpoint_is_of_the_highest_step_and_partial_ones_are_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for name in ("step-000009", "step-000100", "step-000020", ".step-000200.partial"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000100"


def test_a_step_that_is_saved_again_replaces_what_was_there(tmp_path: Path) -> None:
    loop, _ = loop_over(tmp_path, [(1.0, 2.0)])
    for value in (1.0, 2.0):
        (tmp_path / "checkpoints" / ".step-000000.partial" / "rest").mkdir(parents=True)
        save_checkpoint(tmp_path / "checkpoints", {"master": torch.tensor([value])}, loop.state, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000"]
    assert load_checkpoint(tmp_path / "checkpoints" / "step-000000")[0]["master"].tolist() == [2.0]


@pytest.mark.parametrize("file", ["state.safetensors", "loop.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, file: str, damage: str) -> None:
    loop, _ = loop_over(tmp_path, [(1.0, 2.0)])
    path = save_checkpoint(tmp_path, loop.masters.state(), loop.state, 1)
    target = path / file
    if damage == "gone":
        target.unlink()
    else:
        target.write_bytes(target.read_bytes()[:20] if damage == "cut" else b'{"stepp": 3}')
    with pytest.raises(
        UserError, match=r"step-000000 is damaged .* Remove that directory to go on from the one|before"
    ):
        load_checkpoint(path)


# Provenance


def test_provenance_names_versions_seed_data_base_and_the_teacher(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    objective = {"kind": "distillation", "teacher": str(tiny_model)}
    recipe = Recipe.load(
        {"base": str(tiny_model), "data": {"train": "r.jsonl"}, "objective": objective, "train": {"seed": 41}}
    )
    found = provenance(recipe, {"r.jsonl": "abc"}, "def")
    weights = hashlib.sha256((tiny_model / "model.safetensors").read_bytes()).hexdigest()
    config = json.dumps(json.loads((tiny_model / "config.json").read_text(encoding="utf-8")), sort_keys=True)
    assert found["base"] == {"config": config, "model.safetensors": weights}
    assert found["models"] == {str(tiny_model): found["base"]}
    assert (found["seed"], found["data"], found["tokenizer"]) == (41, {"r.jsonl": "abc"}, "def")
    assert found["versions"]["python"] == platform.python_version()
    for name in ("tunesmith", "torch", "transformers", "tokenizers", "peft", "safetensors", "numpy"):
        assert found["versions"][name] == version(name)
    assert len(found["versions"]) == 8
    assert found["machine"]["system"] == f"{platform.system()} {platform.machine()}"
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert (found["machine"]["gpu"] is None) == (not torch.cuda.is_available())
    assert found["created"][:2] == "20"
    assert found["git"] is None  # no repository here


def test_provenance_notes_the_commit_and_whether_there_were_changes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        options = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *options, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load({"base": str(tiny_model), "data": {"train": "r.jsonl"}})
    git("init")
    (tmp_path / "a").write_text("a", encoding="utf-8")
    git("add", "a")
    git("commit", "-m", "a")
    head = git("rev-parse", "HEAD")
    assert provenance(recipe, {}, "")["git"] == {"commit": head, "changed": False}
    (tmp_path / "a").write_text("b", encoding="utf-8")
    assert provenance(recipe, {}, "")["git"] == {"commit": head, "changed": True}


# What a run says and leaves


@pytest.fixture(scope="module")
def told(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Event], dict[str, Any]]:
    """A short run of LoRA on a base in 8 bits, what its subscriber was told, and its recipe."""
    directory = tmp_path_factory.mktemp("told")
    lines = [{"question": f"What is {n}?", "answer": f"It is {2 * n}."} for n in range(30)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = recipe_of(
        tiny_model,
        directory / "rows.jsonl",
        data={"held_out": 0.3},
        method={"kind": "lora", "rank": 4},
        train={"optimizer": "paged_adamw_8bit", "learning_rate": 0.02},
    )
    recipe["base"] = {"path": str(tiny_model), "weights": "int8"}
    found: list[Event] = []
    return tunesmith.train(recipe, directory / "run", subscribers=[found.append]), found, recipe


def test_a_run_tells_its_subscribers_what_it_writes(told: tuple[Run, list[Event], dict[str, Any]]) -> None:
    run, found, _ = told
    assert json.loads(json.dumps(found)) == run.events()
    kinds = [event["event"] for event in found]
    assert kinds[:4] == ["start", "data", "warning", "forecast"]
    assert kinds[-2:] == ["plan", "end"]


def test_a_run_begins_by_telling_what_is_trained_on_what(told: tuple[Run, list[Event], dict[str, Any]]) -> None:
    run, found, recipe = told
    start, data = found[0], found[1]
    assert start == {
        "event": "start",
        "run": str(run.directory),
        "base": recipe["base"]["path"],
        "method": "lora",
        "objective": "instruction",
        "loss_unit": "nats a learnt token",
        "device": "cpu",
        "precision": "float32",
        "weights": "int8",
        "learning_rate": 0.02,
        "parameters": start["parameters"],
        "trained_parameters": 4 * 2 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32 + 3 * (32 + 64)),
        "total_steps": 2,
        "step": 0,
    }
    assert data["rows"] == 30
    (warning,) = named(found, "warning")
    assert warning["message"] == "train.optimizer: paged_adamw_8bit is CUDA's; on cpu plain AdamW does the work."


def test_a_run_ends_by_telling_what_was_foretold_and_what_it_took(
    told: tuple[Run, list[Event], dict[str, Any]],
) -> None:
    run, found, _ = told
    plan, end = found[-2:]
    steps = named(found, "step")
    (forecast,) = named(found, "forecast")
    assert {"event": "forecast", **plan["predicted"]} == forecast
    seconds = sum(event["seconds"] for event in steps)
    tokens = sum(event["tokens"] for event in steps)
    assert plan["measured"]["time"]["total_seconds"] == pytest.approx(seconds)
    assert plan["measured"]["time"]["seconds_per_step"] == pytest.approx(seconds / 2)
    assert plan["measured"]["time"]["tokens_per_second"] == pytest.approx(tokens / seconds)
    ahead = plan["predicted"]["time"]
    assert ahead["seconds_per_step"] * 2 == pytest.approx(ahead["total_seconds"])
    assert ahead["total_seconds"] * ahead["tokens_per_second"] == pytest.approx(tokens)
    assert end == {
        "event": "end",
        "reason": "done",
        "step": 2,
        "seconds": pytest.approx(seconds),
        "output": end["output"],
    }
    assert end["output"] == str(run.directory / "adapter") == str(run.output)


def test_perplexity_is_the_exponential_of_the_loss(told: tuple[Run, list[Event], dict[str, Any]]) -> None:
    evaluations = named(told[1], "evaluation")
    assert [event["step"] for event in evaluations] == [0, 1, 2]
    for event in evaluations:
        assert event["perplexity"] == pytest.approx(np.exp(event["loss"]), rel=1e-12)
        low, high = event["loss_interval"]
        assert low < event["loss"] < high


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT, labeled texts and texts in pairs."""
    directory = tmp_path_factory.mktemp("encoder")
    make_bases(directory, ["bert", "bloom"])
    texts = [{"text": f"w{n % 9} {('bad', 'good')[n % 2]} w{n}", "label": ("no", "yes")[n % 2]} for n in range(24)]
    (directory / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts), encoding="utf-8")
    pairs = [{"anchor": f"w{n} good", "positive": f"film w{n}"} for n in range(12)]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in pairs), encoding="utf-8")
    return directory


def test_classes_have_no_perplexity(tmp_path: Path) -> None:
    classes, words = SquaredErrors([0.7]), SquaredErrors([0.7])
    classes.ending = SimpleNamespace(kind="classes")
    for objective, expected in ((classes, None), (words, math.exp(0.7))):
        loop, told = loop_over(tmp_path, [(1.0, 2.0)], objective=objective, held_out=[(1.0, 1.0)])
        loop.evaluate()
        assert told[0].get("perplexity") == (None if expected is None else pytest.approx(expected, rel=1e-6))


def test_an_adapter_with_a_head_has_the_classes_names_beside_it_and_a_model_in_its_config(
    encoder: Path, tmp_path: Path
) -> None:
    objective = {"kind": "classification", "labels": ["no", "yes", "so"]}
    for method, kind in (("lora", "adapter"), ("full", "model")):
        recipe = Recipe.load(recipe_of(encoder / "bert", encoder / "texts.jsonl", objective=objective, method=method))
        model = trainable_model(recipe, torch.float32, torch.device("cpu"))
        masters = MasterWeights(model.named_parameters(), recipe.train)
        masters.finish()
        place = save_output(Run(tmp_path), model, masters, load_tokenizer(recipe.base), recipe)
        assert place == tmp_path / kind
        assert (place / "ending.json").exists() == (kind == "adapter")
        stored = place / ("ending.json" if kind == "adapter" else "config.json")
        known = json.loads(stored.read_text(encoding="utf-8"))
        labels = known["labels"] if kind == "adapter" else list(known["id2label"].values())
        assert labels == ["no", "yes", "so"]
        with pytest.raises(UserError, match=rf"{kind} could not be written: .* tunesmith train --resume {tmp_path}"):
            save_output(Run(tmp_path), model, masters, load_tokenizer(recipe.base), recipe)  # it is there
        assert not (tmp_path / f".{kind}.partial").exists()


def test_batches_of_one_row_are_warned_of_where_rows_are_compared(encoder: Path, tmp_path: Path) -> None:
    settings = {"tokens_per_step": 64, "tokens_per_batch": 8}
    recipe = recipe_of(encoder / "bert", encoder / "pairs.jsonl", objective="embedding", train=settings)
    run = tunesmith.train({**recipe, "method": "full"}, tmp_path / "run")
    said = [event["message"] for event in named(run.events(), "warning")]
    alone = "12 batches hold one row, which has none to be compared with and teaches nothing. Raise "
    assert said.count(alone + "train.tokens_per_batch, or lower data.max_length.") == 1
    assert run.output is not None
    assert json.loads((run.output / "ending.json").read_text(encoding="utf-8"))["kind"] == "vectors"
    assert (run.output / "modules.json").exists()


def test_a_family_that_is_padded_says_so_where_packing_was_asked_for(
    encoder: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    lines = [{"text": f"w{n} good film w{n % 3}"} for n in range(20)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = recipe_of(encoder / "bloom", tmp_path / "text.jsonl", objective="text", method="full")
    run = tunesmith.train(recipe, tmp_path / "run")
    said = [event["message"] for event in named(run.events(), "warning")]
    assert any("attention cannot be told where documents end: rows are padded." in each for each in said)


# What is refused


def test_a_run_that_is_refused_before_anything_happened_leaves_nothing(
    tiny_model: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    recipe = recipe_of(tiny_model, write_rows(12), method={"kind": "lora", "target_modules": ["nope"]})
    with pytest.raises(UserError, match="no module of LlamaForCausalLM ends in 'nope'"):
        tunesmith.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_refused_later_keeps_what_it_has_told(
    tiny_model: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    def refuse(event: Event) -> None:
        if event["event"] == "step":
            raise UserError("no more")

    recipe = recipe_of(tiny_model, write_rows(12))
    with pytest.raises(UserError, match="no more"):
        tunesmith.train(recipe, tmp_path / "run", subscribers=[refuse])
    assert [event["event"] for event in named(Run(tmp_path / "run").events(), "step")] == ["step"]
