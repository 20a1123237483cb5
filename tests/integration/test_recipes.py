"""The recipes that ship run as they are; only the number of steps is made small here."""

from pathlib import Path

import pytest
from matrix import make_bases

import tunesmith
from tunesmith.chain import Chain
from tunesmith.recipe import OBJECTIVES, Recipe

FOLDER = Path(__file__).parents[2] / "recipes"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


def recipes_of(file: Path) -> tuple[Recipe, ...]:
    chain = Chain.load(file)
    return (Recipe.load(file),) if chain is None else chain.recipes


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_trains(file: Path, tmp_path: Path) -> None:
    overrides = ["train.steps=2"]
    if recipes_of(file)[0].base.path != "embedded":  # a hub's name: a small model of the same family stands in
        make_bases(tmp_path, ["t5"])
        overrides.append(f"base.path={tmp_path / 't5'}")
    run = tunesmith.train(file, tmp_path / "run", overrides)
    assert run.finished
    assert [event["step"] for event in run.events() if event["event"] == "step"] == [1, 2]


@pytest.mark.parametrize("file", sorted((FOLDER / "embedded-base").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_embedded_bases_own_recipes_are_valid(file: Path) -> None:
    assert Recipe.load(file).method.kind == "full"


def test_there_is_an_example_of_every_objective() -> None:
    assert {recipe.objective.kind for file in EXAMPLES for recipe in recipes_of(file)} == set(OBJECTIVES)
