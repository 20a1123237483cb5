"""The recipes that ship run as they are; only the number of steps is made small here."""

from pathlib import Path

import pytest

import tunesmith
from tunesmith.recipe import Recipe

FOLDER = Path(__file__).parents[2] / "recipes"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_trains(file: Path, tmp_path: Path) -> None:
    run = tunesmith.train(file, tmp_path / "run", ["train.steps=2"])
    assert run.finished
    assert [event["step"] for event in run.events() if event["event"] == "step"] == [1, 2]


@pytest.mark.parametrize("file", sorted((FOLDER / "embedded-base").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_embedded_bases_own_recipes_are_valid(file: Path) -> None:
    assert Recipe.load(file).method.kind == "full"
