"""The end of a run: its adapter or model, saved."""

import time
from functools import partial
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from tunesmith.config.head import Head
from tunesmith.config.recipe import Recipe
from tunesmith.engine.checkpoint import load_checkpoint
from tunesmith.engine.loop import Loop
from tunesmith.engine.output import save_output
from tunesmith.inference.held_out import row_vectors
from tunesmith.run import Run


def save(loop: Loop, recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save the adapter or the model, and return where."""
    started = time.perf_counter()
    restore_best(run, loop)
    loop.masters.finish()
    classifier = _classifier(loop, recipe.objective.head)
    output = save_output(run, loop.model, loop.masters, tokenizer, recipe, classifier)
    loop.state.seconds["checkpoints"] += time.perf_counter() - started
    return output


def _classifier(loop: Loop, head: Head) -> nn.Linear | None:
    """The classifier that the objective fits on the trained model's vectors, if it has one."""
    vectors = partial(row_vectors, head, loop.model, loop.batches.table, loop.tokens_per_batch)
    return loop.objective.fit_classifier(vectors)


def restore_best(run: Run, loop: Loop) -> None:
    """With early stopping, restore the best weights instead of the last ones."""
    best = run.directory / "checkpoints" / f"step-{loop.state.best_step or 0:06d}"
    if loop.train.early_stopping is not None and loop.state.best_step != loop.state.step and best.exists():
        loop.masters.restore(load_checkpoint(best)[0])
