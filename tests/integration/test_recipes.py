"""The example recipes run unchanged, except for fewer steps."""

import json
import re
import runpy
from pathlib import Path

import pytest
from matrix import make_bases

import tunesmith
from tunesmith.config.pipeline import Pipeline
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import OBJECTIVES

DIRECTORY = Path(__file__).parents[2] / "recipes"
EXAMPLES = sorted(DIRECTORY.glob("*.yaml"))


def recipes_of(file: Path) -> tuple[Recipe, ...]:
    pipeline = Pipeline.load(file)
    return (Recipe.load(file),) if pipeline is None else pipeline.recipes


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_valid(file: Path) -> None:
    assert recipes_of(file)


@pytest.mark.long
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_trains(file: Path, tmp_path: Path) -> None:
    first = recipes_of(file)[0]
    overrides = ["train.steps=2"] if first.train.steps else ["train.epochs=0.01"]
    if first.base.path != "embedded":  # a hub name: replaced with a small model of the same kind
        family = "t5" if first.objective.bases == ("encoder-decoder",) else "bert"
        make_bases(tmp_path, [family])
        overrides.append(f"base.path={tmp_path / family}")
    run = tunesmith.train(file, tmp_path / "run", overrides)
    assert run.finished
    assert [event["step"] for event in run.events() if event["event"] == "step"] == (
        [1, 2] if first.train.steps else [1]
    )


@pytest.mark.long
def test_the_example_of_serving_trains_serves_and_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["serve_faq.py", "--run", str(tmp_path / "run"), "--steps", "2"])
    runpy.run_path(str(DIRECTORY / "serve_faq.py"), run_name="__main__")
    found = re.search(r"answer: (.*)\nstream: (.*)\nschema: (.*)\n", capfd.readouterr().out, re.DOTALL)
    assert found is not None
    assert found[1] == found[2]
    assert json.loads(found[3])["topic"] in ("account", "billing", "team")


@pytest.mark.parametrize("file", sorted((DIRECTORY / "embedded-base").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_recipes_of_the_embedded_base_are_valid(file: Path) -> None:
    assert Recipe.load(file).method.kind == "full"


def test_every_objective_has_an_example() -> None:
    assert {recipe.objective.kind for file in EXAMPLES for recipe in recipes_of(file)} == set(OBJECTIVES)
