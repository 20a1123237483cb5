"""A run's events, provenance, checkpoints and output, how it stops, and what it refuses."""

import hashlib
import json
import math
import platform
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
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
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.sequence_classification import SequenceClassificationHead
from tunesmith.models.load import load_tokenizer
from tunesmith.run import Event, Run, atomic_directory


def recipe_of(base: Path | str, rows: Path, **fields: Any) -> dict[str, Any]:
    train = {"steps": 2, "tokens_per_step": 128, "precision": "fp32", **fields.pop("train", {})}
    data = {"train": str(rows), "held_out": 0.0, "cache": False, **fields.pop("data", {})}
    return {"base": str(base), "data": data, "train": train, **fields}


# Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_and_the_second_interrupts(number: signal.Signals) -> None:
    before = {other: signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)}
    with listen_for_interrupts() as interruption:
        assert not interruption.asked
        signal.raise_signal(number)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert {other: signal.getsignal(other) for other in before} == before
    assert Interruption.asked is False


def test_signal_handlers_are_unchanged_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGINT)
    observed: list[tuple[bool, bool]] = []

    def listen() -> None:
        with listen_for_interrupts() as interruption:
            observed.append((interruption.asked, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert observed == [(False, True)]


def interrupted_after(directory: Path, step: int, steps: int) -> tuple[str, list[Event], int]:
    """Interrupt a run in that step. Return why it ended, its events, and its last step."""
    interruption = Interruption()

    def ask(number: int) -> None:
        interruption.asked = number >= step

    loop, events = loop_over(
        directory, [(1.0, 2.0)] * steps, steps=steps, objective=SquaredErrors(before=ask), checkpoint_every=50
    )
    return loop.fit(interruption), events, loop.state.step


@pytest.mark.parametrize(("step", "reason"), [(3, "interrupted"), (6, "done")])
def test_an_interrupted_run_finishes_its_step_and_saves_it(tmp_path: Path, step: int, reason: str) -> None:
    ended, events, last = interrupted_after(tmp_path, step, 6)
    assert (ended, last) == (reason, step)
    assert [event["step"] for event in named(events, "checkpoint")] == [step]
    saved = latest_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    assert read_loop_state(saved)["step"] == step


def test_a_signal_at_any_moment_after_a_step_saves_the_step_before_the_run_ends(tmp_path: Path) -> None:
    class Late(Interruption):
        """Asked between the first and the second time that it is read."""

        reads = 0

        @property
        def asked(self) -> bool:  # type: ignore[override]
            self.reads += 1
            return self.reads > 1

    loop, events = loop_over(tmp_path, [(1.0, 2.0)] * 6, steps=6, checkpoint_every=50)
    assert loop.fit(Late()) == "interrupted"
    assert [event["step"] for event in named(events, "checkpoint")] == [loop.state.step]


def test_a_checkpoint_holds_the_state_of_the_loop(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("12345", encoding="utf-8")
    loop, _ = loop_over(tmp_path, [(1.0, 2.0)] * 5, steps=5, objective=SquaredErrors([3.0, 2.5]), held_out=[(1.0, 1.0)])
    loop.train = loop.train.model_copy(update={"evaluate_every": 2})
    loop.fit(Interruption())
    state = load_checkpoint(tmp_path / "checkpoints" / "step-000005")[1]
    assert (state.step, state.tokens, state.metrics_bytes) == (5, 50, 5)
    assert state.threads == torch.get_num_threads()
    assert state.best_step in (4, 5)  # after the script, the model's own loss
    assert 0 < sum(state.seconds.values()) < 60
    assert replace(state, seconds=loop.state.seconds) == loop.state


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


def test_the_latest_checkpoint_has_the_highest_step_and_is_complete(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for name in ("step-000009", "step-000100", "step-000020", ".step-000200.partial"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000100"


def test_a_checkpoint_replaces_one_of_the_same_step(tmp_path: Path) -> None:
    loop, _ = loop_over(tmp_path, [(1.0, 2.0)])
    for value in (1.0, 2.0):
        (tmp_path / "checkpoints" / ".step-000000.partial" / "rest").mkdir(parents=True)
        save_checkpoint(tmp_path / "checkpoints", {"master": torch.tensor([value])}, loop.state, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000"]
    assert load_checkpoint(tmp_path / "checkpoints" / "step-000000")[0]["master"].tolist() == [2.0]


@pytest.mark.parametrize("file", ["state.safetensors", "loop.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "invalid"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, file: str, damage: str) -> None:
    loop, _ = loop_over(tmp_path, [(1.0, 2.0)])
    path = save_checkpoint(tmp_path, loop.masters.state(), loop.state, 1)
    target = path / file
    if damage == "missing":
        target.unlink()
    else:
        target.write_bytes(target.read_bytes()[:20] if damage == "truncated" else b'{"stepp": 3}')
    with pytest.raises(
        UserError, match=r"step-000000 is damaged .* Remove that directory to resume from the checkpoint before it\."
    ):
        load_checkpoint(path)


# Provenance


def test_provenance_has_versions_seed_data_base_and_teacher(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    objective = {"kind": "distillation", "teacher": str(tiny_model)}
    recipe = Recipe.load(
        {"base": str(tiny_model), "data": {"train": "r.jsonl"}, "objective": objective, "train": {"seed": 41}}
    )
    recorded = provenance(recipe, {"r.jsonl": "abc"}, "def")
    weights = hashlib.sha256((tiny_model / "model.safetensors").read_bytes()).hexdigest()
    config = json.dumps(json.loads((tiny_model / "config.json").read_text(encoding="utf-8")), sort_keys=True)
    assert recorded["base"] == {"config": config, "model.safetensors": weights}
    assert recorded["models"] == {str(tiny_model): recorded["base"]}
    assert (recorded["seed"], recorded["data"], recorded["tokenizer"]) == (41, {"r.jsonl": "abc"}, "def")
    assert recorded["versions"]["python"] == platform.python_version()
    for name in ("tunesmith", "torch", "transformers", "tokenizers", "peft", "safetensors", "numpy"):
        assert recorded["versions"][name] == version(name)
    assert len(recorded["versions"]) == 8
    assert recorded["machine"]["system"] == f"{platform.system()} {platform.machine()}"
    assert recorded["machine"]["threads"] == torch.get_num_threads()
    assert (recorded["machine"]["gpu"] is None) == (not torch.cuda.is_available())
    assert recorded["created"][:2] == "20"
    assert recorded["git"] is None  # not in a repository


def test_provenance_has_the_commit_and_whether_there_are_changes(
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


# Events and output


@pytest.fixture(scope="module")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Event], dict[str, Any]]:
    """A short LoRA run on an 8-bit base, the events that its subscriber received, and its recipe."""
    directory = tmp_path_factory.mktemp("finished_run")
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
    events: list[Event] = []
    return tunesmith.train(recipe, directory / "run", subscribers=[events.append]), events, recipe


def test_subscribers_receive_the_events_that_a_run_writes(
    finished_run: tuple[Run, list[Event], dict[str, Any]],
) -> None:
    run, events, _ = finished_run
    assert json.loads(json.dumps(events)) == run.events()
    kinds = [event["event"] for event in events]
    assert kinds[:4] == ["start", "data", "warning", "forecast"]
    assert kinds[-2:] == ["plan", "end"]


def test_a_runs_first_events_describe_the_training_and_the_data(
    finished_run: tuple[Run, list[Event], dict[str, Any]],
) -> None:
    run, events, recipe = finished_run
    start, data = events[0], events[1]
    assert start == {
        "event": "start",
        "extensions": {},
        "run": str(run.directory),
        "base": recipe["base"]["path"],
        "method": "lora",
        "objective": "instruction",
        "loss_unit": "nats per loss token",
        "device": "cpu",
        "precision": "float32",
        "weights": "int8",
        "learning_rate": 0.02,
        "parameters": start["parameters"],
        "trained_parameters": 4 * 2 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32 + 3 * (32 + 64)),
        "total_steps": 2,
        "step": 0,
        "evaluations": {"rows": 8, "every": 2},
    }
    assert data["rows"] == 30
    (warning,) = named(events, "warning")
    assert warning["message"] == "train.optimizer: paged_adamw_8bit needs CUDA; on cpu, AdamW is used instead."


def test_a_runs_last_events_have_predicted_and_measured_values(
    finished_run: tuple[Run, list[Event], dict[str, Any]],
) -> None:
    run, events, _ = finished_run
    plan, end = events[-2:]
    steps = named(events, "step")
    (forecast,) = named(events, "forecast")
    assert {"event": "forecast", **plan["predicted"]} == forecast
    training, evaluation, checkpoints = (
        sum(event["seconds"] for event in named(events, kind)) for kind in ("step", "evaluation", "checkpoint")
    )
    tokens = sum(event["tokens"] for event in steps)
    time = plan["measured"]["time"]
    assert time["seconds_per_step"] == pytest.approx(training / 2)
    assert time["tokens_per_second"] == pytest.approx(tokens / training)
    assert time["parts"]["training"] == pytest.approx(training)
    assert time["parts"]["evaluation"] == pytest.approx(evaluation)
    assert time["parts"]["checkpoints"] > checkpoints, "the adapter is written too"
    assert time["parts"]["start"] > plan["predicted"]["time"]["parts"]["start"] > 0
    assert time["total_seconds"] == pytest.approx(sum(time["parts"].values()))
    predicted = plan["predicted"]["time"]
    assert predicted["seconds_per_step"] * 2 == pytest.approx(predicted["parts"]["training"])
    assert predicted["parts"]["training"] * predicted["tokens_per_second"] == pytest.approx(tokens)
    assert end == {
        "event": "end",
        "reason": "done",
        "step": 2,
        "seconds": pytest.approx(time["total_seconds"]),
        "output": end["output"],
    }
    assert end["output"] == str(run.directory / "adapter") == str(run.output)


def test_perplexity_is_the_exponential_of_the_loss(finished_run: tuple[Run, list[Event], dict[str, Any]]) -> None:
    evaluations = named(finished_run[1], "evaluation")
    assert [event["step"] for event in evaluations] == [0, 2]
    for event in evaluations:
        assert event["perplexity"] == pytest.approx(np.exp(event["loss"]), rel=1e-12)
        low, high = event["loss_interval"]
        assert low < event["loss"] < high


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a BERT, a BLOOM, labeled texts and text pairs."""
    directory = tmp_path_factory.mktemp("encoder")
    make_bases(directory, ["bert", "bloom"])
    texts = [{"text": f"w{n % 9} {('bad', 'good')[n % 2]} w{n}", "label": ("no", "yes")[n % 2]} for n in range(24)]
    (directory / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts), encoding="utf-8")
    pairs = [{"anchor": f"w{n} good", "positive": f"film w{n}"} for n in range(12)]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in pairs), encoding="utf-8")
    return directory


def test_a_directory_is_replaced_as_a_whole_and_kept_if_the_new_one_fails(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (tmp_path / ".out.old").mkdir()  # left by a process that was killed
    for number in range(2):
        with atomic_directory(target, replace=True) as directory:
            (directory / str(number)).write_text("", encoding="utf-8")
        assert [path.name for path in target.iterdir()] == [str(number)]
    with pytest.raises(KeyError), atomic_directory(target, replace=True) as directory:
        raise KeyError
    with pytest.raises(OSError, match="out"), atomic_directory(target) as directory:
        (directory / "2").write_text("", encoding="utf-8")
    assert [path.name for path in target.iterdir()] == ["1"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_classification_loss_has_no_perplexity(tmp_path: Path) -> None:
    loop, events = loop_over(tmp_path, [(1.0, 2.0)], objective=SquaredErrors([0.7]), held_out=[(1.0, 1.0)])
    loop.evaluate()
    assert events[0]["perplexity"] == pytest.approx(math.exp(0.7), rel=1e-6)
    assert CausalLMHead().loss_metrics(800.0) == {"perplexity": pytest.approx(math.exp(700.0))}, "not infinite"
    assert SequenceClassificationHead(("no", "yes")).loss_metrics(0.7) == {}


def test_class_names_are_saved_beside_an_adapter_and_in_a_models_config(encoder: Path, tmp_path: Path) -> None:
    objective = {"kind": "classification", "labels": ["no", "yes", "so"]}
    for method, kind in (("lora", "adapter"), ("full", "model")):
        recipe = Recipe.load(recipe_of(encoder / "bert", encoder / "texts.jsonl", objective=objective, method=method))
        model, _ = trainable_model(recipe, torch.float32, torch.device("cpu"))
        masters = MasterWeights(model.named_parameters(), recipe.train)
        masters.finish()
        path = save_output(Run(tmp_path), model, masters, load_tokenizer(recipe.base), recipe)
        assert path == tmp_path / kind
        assert (path / "head.json").exists() == (kind == "adapter")
        stored = path / ("head.json" if kind == "adapter" else "config.json")
        config = json.loads(stored.read_text(encoding="utf-8"))
        labels = config["labels"] if kind == "adapter" else list(config["id2label"].values())
        assert labels == ["no", "yes", "so"]
        with pytest.raises(UserError, match=rf"{kind} could not be written: .* tunesmith train --resume {tmp_path}"):
            save_output(Run(tmp_path), model, masters, load_tokenizer(recipe.base), recipe)  # it exists already
        assert not (tmp_path / f".{kind}.partial").exists()


def test_a_contrastive_run_warns_about_batches_of_one_row(encoder: Path, tmp_path: Path) -> None:
    settings = {"tokens_per_step": 64, "tokens_per_batch": 8}
    recipe = recipe_of(encoder / "bert", encoder / "pairs.jsonl", objective="embedding", train=settings)
    run = tunesmith.train({**recipe, "method": "full"}, tmp_path / "run")
    warnings = [event["message"] for event in named(run.events(), "warning")]
    message = (
        "12 batches hold a single row. It has no other row to compare with, so these batches train nothing. Raise "
        "train.tokens_per_batch, or lower data.max_length."
    )
    assert warnings.count(message) == 1
    assert run.output is not None
    assert json.loads((run.output / "head.json").read_text(encoding="utf-8"))["kind"] == "embedding"
    assert (run.output / "modules.json").exists()


def test_a_run_warns_if_a_family_cannot_be_packed(
    encoder: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    lines = [{"text": f"w{n} good film w{n % 3}"} for n in range(20)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = recipe_of(encoder / "bloom", tmp_path / "text.jsonl", objective="text", method="full")
    run = tunesmith.train(recipe, tmp_path / "run")
    warnings = [event["message"] for event in named(run.events(), "warning")]
    expected = "attention does not support packed documents: rows are padded instead."
    assert any(expected in message for message in warnings)


# What is refused


def test_a_run_refused_before_it_starts_leaves_no_directory(
    tiny_model: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    recipe = recipe_of(tiny_model, write_rows(12), method={"kind": "lora", "target_modules": ["nope"]})
    with pytest.raises(UserError, match="no linear layer of LlamaForCausalLM has a name that ends in 'nope'"):
        tunesmith.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_later_keeps_its_events(
    tiny_model: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    def refuse(event: Event) -> None:
        if event["event"] == "step":
            raise UserError("no more")

    recipe = recipe_of(tiny_model, write_rows(12))
    with pytest.raises(UserError, match="no more"):
        tunesmith.train(recipe, tmp_path / "run", subscribers=[refuse])
    assert [event["event"] for event in named(Run(tmp_path / "run").events(), "step")] == ["step"]


@pytest.mark.parametrize(("steps", "evaluated"), [(43, range(0, 43, 4)), (3, range(4))])
def test_without_settings_a_run_is_evaluated_and_saved_in_ten_parts(
    steps: int, evaluated: range, tmp_path: Path
) -> None:
    loop, events = loop_over(tmp_path, [(1.0, 2.0)] * steps, steps=steps, held_out=[(1.0, 1.0)])
    assert loop.fit(Interruption()) == "done"
    assert [event["step"] for event in named(events, "evaluation")] == [*evaluated, *({steps} - {*evaluated})]
    assert [event["step"] for event in named(events, "checkpoint")] == [*evaluated[1:], *({steps} - {*evaluated})]
