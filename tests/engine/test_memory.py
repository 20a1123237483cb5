"""A run stays within the memory that it is given, at the least cost, and learns the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import make_bases, write_data

import tunesmith
from tunesmith.data.pack import Batch
from tunesmith.engine.memory import SLACK, Activations, activations_of, fit, recompute
from tunesmith.errors import UserError
from tunesmith.models.attention import use_document_attention
from tunesmith.models.load import load_model
from tunesmith.recipe import Base, Recipe

KEPT = Activations([1000] * 4, 100, 50)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    make_bases(folder)
    write_data(folder)
    return folder


def test_as_few_blocks_run_twice_as_will_do_then_batches_are_halved() -> None:
    free = int(SLACK * 1024 * KEPT.kept(0)) + 1
    assert fit(KEPT, 0, free, 1024, 100) == fit(KEPT, 0, 10 * free, 1024, 100)
    assert fit(KEPT, 0, free, 1024, 100).recomputed == 0
    some = fit(KEPT, 0, int(SLACK * 1024 * KEPT.kept(2)) + 1, 1024, 100)
    assert (some.recomputed, some.tokens_per_batch) == (2, 1024)
    halved = fit(KEPT, 0, int(SLACK * 512 * KEPT.kept(1)) + 1, 1024, 100)
    assert halved.tokens_per_batch in (512, 1024)
    assert SLACK * halved.tokens_per_batch * KEPT.kept(halved.recomputed) <= int(SLACK * 512 * KEPT.kept(1)) + 1


def test_a_limit_too_low_for_the_longest_row_is_refused_with_what_would_do() -> None:
    with pytest.raises(UserError, match=r"train.memory_limit: 0.00 GB are too few: .* Set memory_limit: 0.2GB"):
        fit(KEPT, 100_000_000, 1000, 1024, 400)


def test_what_autograd_keeps_is_counted_by_block_and_falls_when_blocks_run_twice(work: Path) -> None:
    base = Base(path=str(work / "llama"))
    model = load_model(base, torch.float32)
    use_document_attention(model)
    model.requires_grad_(True).train()
    objective = Recipe.load({"base": base.path, "data": {"train": str(work / "chats_learnt.jsonl")}}).objective
    ids = torch.arange(64)[None] % 50
    batch = Batch(ids, torch.arange(64)[None], [64], torch.arange(63), ids[0, 1:], (0,), 64, [63], [1])
    whole = activations_of(model, objective, batch)
    hidden = model.config.hidden_size
    assert len(whole.blocks) == model.config.num_hidden_layers
    assert all(each > 8 * hidden * 4 for each in whole.blocks)  # norms, q, k, v, gate, up … in fp32
    recompute(model, 1)
    half = activations_of(model, objective, batch)
    assert half.blocks[0] <= 3 * hidden * 4
    assert half.blocks[1] == pytest.approx(whole.blocks[1], rel=0.1)


def test_a_run_within_a_limit_learns_the_same_and_says_what_it_gave_up(work: Path, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "base": str(work / "llama"),
        "data": {"train": str(work / "chats_learnt.jsonl"), "held_out": 0.0, "max_length": 64},
        "method": "lora",
        "train": {"steps": 3, "tokens_per_step": 128, "precision": "fp32", "memory_limit": "64GB"},
    }
    free = tunesmith.train({**recipe, "train": {**recipe["train"], "memory_limit": None}}, tmp_path / "free")
    kept = tunesmith.train(recipe, tmp_path / "kept")
    twice = tunesmith.train(
        {**recipe, "train": {**recipe["train"], "gradient_checkpointing": True}}, tmp_path / "twice"
    )

    def losses(run: Any) -> list[float]:
        return [event["loss"] for event in run.events() if event["event"] == "step"]

    assert losses(kept) == pytest.approx(losses(free), rel=1e-6)
    assert losses(twice) == pytest.approx(losses(free), rel=1e-5)
    told = [next(event for event in run.events() if event["event"] == "memory") for run in (kept, twice)]
    assert [event["recomputed"] for event in told] == [0, told[1]["blocks"]]
    with pytest.raises(UserError, match=r"train.memory_limit: 0.01 GB are too few"):
        tunesmith.train({**recipe, "train": {**recipe["train"], "memory_limit": "10MB"}}, tmp_path / "none")


def test_offloading_on_a_cpu_is_said_to_be_for_nothing(work: Path, tmp_path: Path) -> None:
    recipe = {
        "base": str(work / "llama"),
        "data": {"train": str(work / "chats_learnt.jsonl"), "held_out": 0.0, "max_length": 64},
        "train": {"steps": 1, "tokens_per_step": 128, "precision": "fp32", "offload_activations": True},
    }
    run = tunesmith.train(recipe, tmp_path / "run")
    said = [event["message"] for event in run.events() if event["event"] == "warning"]
    assert said == ["train.offload_activations: on a CPU they are in its memory already."]
