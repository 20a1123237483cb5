"""Cross-validation: every row is held out once, judged by the model that has not seen it; the last run has seen all."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrix import make_bases

import tunesmith
from tunesmith.config.pipeline import Pipeline
from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import prepare, resolve
from tunesmith.errors import UserError
from tunesmith.models.load import load_tokenizer
from tunesmith.run import Run
from tunesmith.training.stages import resume, train


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    make_bases(tmp_path, ["bert"])
    rows = [
        {"text": f"{('bad', 'good')[n % 4 == 0]} film w{n} w{n % 7}", "label": ("no", "yes")[n % 4 == 0]}
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "base": str(tmp_path / "bert"),
        "data": {"train": str(tmp_path / "rows.jsonl"), "folds": 5, "cache": False},
        "method": "full",
        "objective": "classification",
        "train": {"steps": 20, "tokens_per_step": 512, "precision": "fp32", "learning_rate": 3e-3},
    }


def test_every_row_is_held_out_once_in_parts_of_like_size_and_classes(recipe: dict[str, Any]) -> None:
    chain = Pipeline.load(recipe)
    assert chain is not None
    assert chain.names == ("fold1", "fold2", "fold3", "fold4", "fold5", "whole")
    seen: Counter[str] = Counter()
    for each in chain.recipes[:-1]:
        prepared = prepare(resolve(each), load_tokenizer(each.base))
        labels = Counter(float(prepared.held_out.targets_of(row)[0]) for row in range(len(prepared.held_out)))
        assert labels == {0.0: 6, 1.0: 2}
        assert len(prepared.train) == 32
        seen.update(str(prepared.held_out.source(row)) for row in range(len(prepared.held_out)))
    assert len(seen) == 40
    assert set(seen.values()) == {1}
    assert len(prepare(resolve(chain.recipes[-1]), load_tokenizer(chain.recipes[-1].base)).train) == 40
    assert Pipeline.load(Recipe.load(recipe)) == chain


@pytest.mark.long
def test_folds_are_one_command_and_judge_all_rows_and_go_on_after_a_kill(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    last = train(recipe, tmp_path / "folds")
    assert last.directory == tmp_path / "folds" / "6-whole"
    found = tunesmith.evaluate(tmp_path / "folds")
    assert (found["rows"], found["folds"]) == (40, 5)
    assert found["tuned"]["metrics"]["accuracy"]["value"] > 0.9
    low, high = found["tuned"]["metrics"]["accuracy"]["interval"]
    assert low <= found["tuned"]["metrics"]["accuracy"]["value"] <= high
    alone = [tunesmith.evaluate(stage)["tuned"]["metrics"]["accuracy"]["value"] for stage in last.stages[:-1]]
    assert found["tuned"]["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(alone))

    class KilledError(Exception):
        pass

    steps = 0

    def kill(event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["event"] == "checkpoint"
        if steps == 15:
            raise KilledError

    with pytest.raises(KilledError):
        train(recipe, tmp_path / "killed", subscribers=[kill])
    assert not Run.open(tmp_path / "killed").directory.name.endswith("whole")
    again = resume(tmp_path / "killed")
    weights = "model/model.safetensors"
    assert (again.directory / weights).read_bytes() == (last.directory / weights).read_bytes()


def test_two_folds_are_judged_together_and_each_by_itself(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["data"]["folds"], recipe["train"]["steps"] = 2, 1
    last = train(recipe, tmp_path / "folds")
    found = tunesmith.evaluate(tmp_path / "folds")
    assert (found["rows"], found["folds"]) == (40, 2)
    parts = [tunesmith.evaluate(stage) for stage in last.stages[:-1]]
    assert [(part["rows"], part["folds"]) for part in parts] == [(20, None)] * 2
    for side in ("base", "tuned"):
        assert found[side]["loss"] == pytest.approx(np.mean([part[side]["loss"] for part in parts]))


def test_folds_that_cannot_be_are_refused(recipe: dict[str, Any]) -> None:
    recipe["data"]["held_out"] = ["rows.jsonl"]
    with pytest.raises(UserError, match="folds hold every training row out once"):
        Recipe.load(recipe)
    del recipe["data"]["held_out"]
    recipe["data"]["fold"] = 6
    with pytest.raises(UserError, match="fold: 6 is none of folds: 5"):
        Recipe.load(recipe)
