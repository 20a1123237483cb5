"""Stages go on from each other's weights, and a chain that was killed ends as if nothing had happened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.models.generate import Sampling, answers
from tunesmith.models.model_reference import ModelReference
from tunesmith.run import Run
from tunesmith.training.stages import resume, train

FULL = {"method": "full", "objective": {"kind": "text"}}
LORA = {"method": {"kind": "lora", "rank": 4}}


@pytest.fixture
def chain(tiny_model: Path, write_rows: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    def make(*stages: dict[str, Any]) -> dict[str, Any]:
        return {
            "base": str(tiny_model),
            "data": {"train": str(write_rows(60)), "held_out": 0.3, "cache": False},
            "train": {
                "steps": 6, "evaluate_every": 3, "checkpoint_every": 3, "precision": "fp32", "learning_rate": 3e-3
            },
            "stages": [{"name": f"s{number}", **stage} for number, stage in enumerate(stages)],
        }  # fmt: skip

    return make


def losses(run: Run) -> list[float]:
    return [event["loss"] for event in run.events() if event["event"] == "evaluation"]


@pytest.mark.parametrize(
    ("first", "then", "how"),
    [
        ({"method": "full"}, LORA, "model"),
        (LORA, LORA, "adapter"),
        pytest.param({"method": "ia3"}, {"method": "ia3"}, "adapter", marks=pytest.mark.long),
        pytest.param({"method": "prefix"}, {"method": "prefix"}, "adapter", marks=pytest.mark.long),
        pytest.param(LORA, {"method": "full"}, "merged", marks=pytest.mark.long),
        pytest.param(LORA, {"method": {"kind": "lora", "rank": 8}}, "merged", marks=pytest.mark.long),
    ],
)
def test_a_stage_begins_where_the_one_before_it_ended(first, then, how, chain, tmp_path):
    last = train(chain(first, then), tmp_path / "chain")
    before = Run.open(tmp_path / "chain" / "1-s0")
    assert last.directory == tmp_path / "chain" / "2-s1"
    assert losses(last)[0] == pytest.approx(losses(before)[-1], rel=1e-4)
    assert losses(last)[-1] < losses(last)[0]
    base = Recipe.load(last.directory / "recipe.yaml").base
    assert (how == "adapter") == (base.adapter is not None)
    assert (how == "merged") == (before.directory / "merged").exists()


def test_a_chain_can_be_used_and_opened_by_its_own_name(chain, tmp_path):
    last = train(chain(FULL, LORA), tmp_path / "chain")
    assert Run.open(tmp_path / "chain").directory == last.directory
    assert last.whole == tmp_path / "chain"
    assert last.stages == [tmp_path / "chain" / "1-s0", tmp_path / "chain" / "2-s1"]
    usable = ModelReference.find(str(tmp_path / "chain"))
    model = usable.model(torch.float32, torch.device("cpu"))
    assert answers(model, usable.tokenizer(), [({"role": "user", "content": "a"},)], Sampling(max_new_tokens=2))
    with pytest.raises(UserError, match="has finished"):
        resume(tmp_path / "chain")


@pytest.mark.parametrize("stage", [pytest.param("1-s0", marks=pytest.mark.long), "2-s1"])
def test_killed_in_any_stage_a_chain_ends_with_the_same_bytes(stage, chain, tmp_path):
    class KilledError(Exception):
        pass

    where: list[str] = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            where[:] = [Path(event["run"]).name]
        if event["event"] == "checkpoint" and event["step"] == 3 and where == [stage]:
            raise KilledError

    recipe = chain(FULL, LORA)
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(recipe, tmp_path / "killed", subscribers=[kill])
    again = resume(tmp_path / "killed")
    file = "adapter/adapter_model.safetensors"
    assert (again.directory / file).read_bytes() == (whole.directory / file).read_bytes()


def test_every_stage_is_checked_before_the_first_begins(chain, tmp_path):
    for stage, message in (
        ({"method": "lora", "train": {"stepps": 3}}, r"recipe: stage s1: train\.stepps is not a field"),
        ({"base": "embedded"}, "stage s1: its base is what the stage before it leaves"),
        ({"name": "s0"}, "name 's0' is taken"),
    ):
        with pytest.raises(UserError, match=message):
            train(chain(FULL, stage), tmp_path / "chain")
    with pytest.raises(UserError, match="methods is not a field beside stages"):
        train({**chain(FULL), "methods": "lora"}, tmp_path / "chain")
    assert not (tmp_path / "chain").exists()


def test_an_adapter_of_another_shape_is_refused_by_name(chain, tmp_path, tiny_model):
    one = {key: value for key, value in chain().items() if key != "stages"}
    made = train({**one, **LORA}, tmp_path / "made").directory / "adapter"
    for method, message in (
        ({"kind": "lora", "rank": 8}, "was not made by this method on this base"),
        ({"kind": "full"}, "this method leaves none to go on with"),
        ({"kind": "ia3"}, "was not made by this method on this base"),
    ):
        with pytest.raises(UserError, match=message):
            train({**one, "base": {"path": str(tiny_model), "adapter": str(made)}, "method": method}, tmp_path / "run")
