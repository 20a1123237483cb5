"""Cross-validation: each row is held out once and evaluated by that fold's model; the last run trains on all."""

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


def test_each_row_is_held_out_once_in_folds_of_similar_size_and_classes(recipe: dict[str, Any]) -> None:
    pipeline = Pipeline.load(recipe)
    assert pipeline is not None
    assert pipeline.names == ("fold1", "fold2", "fold3", "fold4", "fold5", "whole")
    seen: Counter[str] = Counter()
    for fold in pipeline.recipes[:-1]:
        prepared = prepare(resolve(fold), load_tokenizer(fold.base))
        labels = Counter(float(prepared.held_out.targets_of(row)[0]) for row in range(len(prepared.held_out)))
        assert labels == {0.0: 6, 1.0: 2}
        assert len(prepared.train) == 32
        seen.update(str(prepared.held_out.source(row)) for row in range(len(prepared.held_out)))
    assert len(seen) == 40
    assert set(seen.values()) == {1}
    assert len(prepare(resolve(pipeline.recipes[-1]), load_tokenizer(pipeline.recipes[-1].base)).train) == 40
    assert Pipeline.load(Recipe.load(recipe)) == pipeline


@pytest.mark.long
def test_folds_evaluate_all_rows_in_one_command_and_resume_after_a_kill(recipe: dict[str, Any], tmp_path: Path) -> None:
    last = train(recipe, tmp_path / "folds")
    assert last.directory == tmp_path / "folds" / "6-whole"
    result = tunesmith.evaluate(tmp_path / "folds")
    assert (result["rows"], result["folds"]) == (40, 5)
    assert result["models"]["tuned"]["accuracy"]["value"] > 0.9
    low, high = result["models"]["tuned"]["accuracy"]["interval"]
    assert low <= result["models"]["tuned"]["accuracy"]["value"] <= high
    accuracies = [tunesmith.evaluate(stage)["models"]["tuned"]["accuracy"]["value"] for stage in last.stages[:-1]]
    assert result["models"]["tuned"]["accuracy"]["value"] == pytest.approx(np.mean(accuracies))

    class KilledError(Exception):
        pass

    checkpoints = 0

    def kill(event: dict[str, Any]) -> None:
        nonlocal checkpoints
        checkpoints += event["event"] == "checkpoint"
        if checkpoints == 15:
            raise KilledError

    with pytest.raises(KilledError):
        train(recipe, tmp_path / "killed", subscribers=[kill])
    assert not Run.open(tmp_path / "killed").directory.name.endswith("whole")
    again = resume(tmp_path / "killed")
    weights = "model/model.safetensors"
    assert (again.directory / weights).read_bytes() == (last.directory / weights).read_bytes()


@pytest.mark.long
def test_two_folds_are_evaluated_together_and_individually(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["data"]["folds"], recipe["train"]["steps"] = 2, 1
    last = train(recipe, tmp_path / "folds")
    result = tunesmith.evaluate(tmp_path / "folds")
    assert (result["rows"], result["folds"]) == (40, 2)
    parts = [tunesmith.evaluate(stage) for stage in last.stages[:-1]]
    assert [(part["rows"], part["folds"]) for part in parts] == [(20, None)] * 2
    for side in ("base", "tuned"):
        assert result["models"][side]["loss"]["value"] == pytest.approx(
            np.mean([part["models"][side]["loss"]["value"] for part in parts])
        )


def test_invalid_folds_are_refused(recipe: dict[str, Any]) -> None:
    recipe["data"]["held_out"] = ["rows.jsonl"]
    with pytest.raises(UserError, match="folds hold every training row out once"):
        Recipe.load(recipe)
    del recipe["data"]["held_out"]
    recipe["data"]["fold"] = 6
    with pytest.raises(UserError, match="fold: 6 is not one of folds: 5"):
        Recipe.load(recipe)
