"""A run is resumed only with the data, base and tokenizer that it started with."""

import json

from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import Prepared
from tunesmith.engine.checkpoint import latest_checkpoint
from tunesmith.engine.provenance import provenance
from tunesmith.errors import UserError
from tunesmith.run import Run


def refuse_changes(run: Run, recipe: Recipe, prepared: Prepared, tokenizer: str) -> None:
    """Compare what the run started with to what is there now.

    Args:
        run: to be resumed.
        recipe: the run's.
        prepared: its rows as they are now.
        tokenizer: the fingerprint of the tokenizer as it is now.

    Raises:
        UserError: something has changed, or the run's checkpoints were deleted.
    """
    before = json.loads((run.directory / "provenance.json").read_text(encoding="utf-8"))
    now = provenance(recipe, prepared.fingerprints, tokenizer)
    for name in sorted({*before["data"], *now["data"]}):
        if before["data"].get(name) != now["data"].get(name):
            raise UserError(
                f"{name} has changed since {run.directory} started, so resuming would give another result. Restore the "
                "file, or start a new run."
            )
    if before["base"] != now["base"]:
        raise UserError(
            f"base: {recipe.base.path} has changed since {run.directory} started, so resuming would give another "
            "result. Restore the weights, or start a new run."
        )
    if before.get("tokenizer", tokenizer) != tokenizer:
        raise UserError(
            f"base: the tokenizer or chat template of {recipe.base.path} has changed since {run.directory} started, so "
            "resuming would give another result. Restore it, or start a new run."
        )
    if before.get("models", {}) != now["models"]:
        raise UserError(f"objective.teacher has changed since {run.directory} started. Restore it, or start a new run.")
    if before.get("extensions", now["extensions"]) != now["extensions"]:
        raise UserError(
            f"The code of {', '.join(recipe.extensions)} has changed since {run.directory} started, so resuming would "
            "give another result. Restore it, or start a new run."
        )
    had_checkpoints = any(event["event"] == "checkpoint" for event in run.events())
    if had_checkpoints and latest_checkpoint(run.directory / "checkpoints") is None:
        raise UserError(
            f"{run.directory}/checkpoints is empty, but the run wrote checkpoints: they were deleted, so the run "
            "cannot be resumed. Restore them, or start a new run."
        )
