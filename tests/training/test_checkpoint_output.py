"""A checkpoint stands for the run as it was saved at that step: which directories are one, and what is made of it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunesmith import Trainer
from tunesmith.cache_directory import cache_directory
from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.training.checkpoint_output import is_checkpoint, output_of_checkpoint


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a checkpoint after each; the second has the weights that were saved."""
    directory = tmp_path_factory.mktemp("checkpoints")
    rows = directory / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "What is {n}?", "answer": "It is {n}."}}\n' for n in range(20)))
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(rows), "held_out": 0.0, "cache": False},
        "method": {"kind": "lora", "rank": 2, "dropout": 0.1},
        "train": {"steps": 2, "tokens_per_step": 64, "precision": "fp32", "learning_rate": 1e-2, "keep_checkpoints": 2},
    }
    with Trainer(recipe, directory / "run") as trainer:
        trainer.step()
        trainer.checkpoint()
        trainer.step()
        trainer.save()
    return directory / "run"


def checkpoint_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def test_a_checkpoint_is_a_state_of_the_loop_in_a_run(run: Path, tmp_path: Path) -> None:
    assert is_checkpoint(checkpoint_of(run, 1))
    assert not is_checkpoint(run)
    assert not is_checkpoint(run / "checkpoints" / "step-000009")
    elsewhere = tmp_path / "copies" / "checkpoints" / "step-000001"
    shutil.copytree(checkpoint_of(run, 1), elsewhere)
    assert not is_checkpoint(elsewhere), "there is no recipe"


def test_the_output_of_a_checkpoint_has_the_weights_of_its_step(run: Path) -> None:
    first, last = (output_of_checkpoint(checkpoint_of(run, step)) for step in (1, 2))
    name = "adapter/adapter_model.safetensors"
    assert (last / name).read_bytes() == (run / name).read_bytes()
    weights, saved = load_file(first / name), load_file(run / name)
    assert weights.keys() == saved.keys()
    assert not all(torch.equal(weights[key], saved[key]) for key in saved)
    assert (first / "recipe.yaml").read_bytes() == (run / "recipe.yaml").read_bytes()
    assert Recipe.load(first / "recipe.yaml").method.kind == "lora"


def test_the_output_of_a_checkpoint_is_made_once_for_its_weights_and_recipe(run: Path, tmp_path: Path) -> None:
    output = output_of_checkpoint(checkpoint_of(run, 1))
    assert output.parent == cache_directory() / "checkpoints"
    (output / "adapter").rename(output / "seen")
    assert output_of_checkpoint(checkpoint_of(run, 1)) == output
    assert not (output / "adapter").exists(), "nothing is written again"
    moved = shutil.copytree(run, tmp_path / "moved")
    assert output_of_checkpoint(checkpoint_of(moved, 1)) == output
    with (moved / "recipe.yaml").open("a") as recipe:
        recipe.write("# another one\n")
    other = output_of_checkpoint(checkpoint_of(moved, 1))
    assert other != output
    assert (other / "adapter").exists()


def test_reading_a_checkpoint_leaves_the_random_numbers_as_they_are(run: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    output_of_checkpoint(checkpoint_of(run, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_cache_that_cannot_be_written_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "taken"))
    with pytest.raises(UserError, match=r"checkpoints cannot be written: Not a directory\. Set TUNESMITH_CACHE"):
        output_of_checkpoint(checkpoint_of(run, 1))
