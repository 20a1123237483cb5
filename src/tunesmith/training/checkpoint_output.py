"""The adapter or the model of a checkpoint, as the run would have saved it at that step."""

import hashlib
import shutil
from pathlib import Path

import torch

from tunesmith.cache_directory import cache_directory
from tunesmith.config.extensions import copy_code
from tunesmith.config.recipe import Recipe
from tunesmith.engine.checkpoint import load_checkpoint
from tunesmith.engine.output import save_output
from tunesmith.engine.trainable import trainable_model
from tunesmith.models.load import load_tokenizer
from tunesmith.models.precision import device_of, dtype_of
from tunesmith.run import Run, cached_directory
from tunesmith.training.set_up import masters_of


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint of a run.

    Args:
        path: such as `RUN/checkpoints/step-000050`.

    Returns:
        True if it is.
    """
    return (path / "loop.json").exists() and (path.parent.parent / "recipe.yaml").exists()


def output_of_checkpoint(checkpoint: Path) -> Path:
    """A run directory with the adapter or the model of a checkpoint, made on first use and kept in the user's cache.

    Args:
        checkpoint: such as `RUN/checkpoints/step-000050`; the run need not be finished.

    Returns:
        The directory: `recipe.yaml` and `adapter/` or `model/`.

    Raises:
        UserError: the checkpoint is damaged, the base has changed, or the cache cannot be written.
    """
    run = Run.open(checkpoint.parent.parent)
    directory = cache_directory() / "checkpoints" / _digest(run, checkpoint)
    return cached_directory(directory, lambda partial: _write(run, checkpoint, partial))


def _digest(run: Run, checkpoint: Path) -> str:
    digest = hashlib.sha256((run.directory / "recipe.yaml").read_bytes())
    with (checkpoint / "state.safetensors").open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write(run: Run, checkpoint: Path, target: Path) -> None:
    """Restore the trained weights, and save them with the files that a run has beside them."""
    recipe = Recipe.load(run.directory / "recipe.yaml")
    shutil.copy(run.directory / "recipe.yaml", target)
    copy_code(recipe.extensions.values(), recipe.directory, target)
    device = device_of(recipe.train.device)
    random_state = torch.get_rng_state()
    try:
        model, objective = trainable_model(recipe, dtype_of(recipe.precision, device), device)
        _, masters = masters_of(recipe, model, objective)
        masters.restore(load_checkpoint(checkpoint)[0])
    finally:
        torch.set_rng_state(random_state)
    masters.finish()
    save_output(Run(target), model, masters, load_tokenizer(recipe.base), recipe)
