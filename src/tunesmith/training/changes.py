"""A run is resumed only with the data, base and tokenizer that it started with."""

import json

from tunesmith.config.extensions import UsersCodeError
from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import Prepared
from tunesmith.engine.checkpoint import latest_checkpoint
from tunesmith.engine.provenance import provenance
from tunesmith.errors import UserError
from tunesmith.run import Run


def refuse_changes(run: Run, recipe: Recipe, prepared: Prepared, tokenizer: str) -> None:
    """Compare what the run started with to what is there now. Code of users that has failed may have changed; the
    change is recorded in `provenance.json`.

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
    is_corrected = before.get("extensions", now["extensions"]) != now["extensions"]
    if is_corrected and not before.get("code_has_failed"):
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
    if is_corrected:
        earlier = [*before.get("corrected_extensions", []), before["extensions"]]
        run.write_json("provenance.json", {**before, "extensions": now["extensions"], "corrected_extensions": earlier})


def note_failure(run: Run) -> None:
    """Note that code of users failed in the run, so that it may be corrected."""
    before = json.loads((run.directory / "provenance.json").read_text(encoding="utf-8"))
    run.write_json("provenance.json", {**before, "code_has_failed": True})


def with_advice(run: Run, error: UsersCodeError) -> UserError:
    """The error of users' code in a run that is kept, with what to do."""
    checkpoint = latest_checkpoint(run.directory / "checkpoints")
    step = 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))
    return UserError(
        f"{error}\n{run.directory} is kept, with its own copy of the code that was beside the recipe. Correct it "
        f"there, then continue after step {step:,}: tunesmith train --resume {run.pipeline_directory}"
    )
