"""The runs of a comparison: the base fine-tuned on its training rows, as they are or with excerpts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.comparing.spec import Comparison
from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.inference.result_cache import digest_of
from tunesmith.run import Run, Subscriber
from tunesmith.training.stages import resume, train

SECTIONS = ("base", "method", "objective", "train")
"""Of a recipe, that `tune` may have."""


def recipe_for(comparison: Comparison, rows: Path, development: Path | None) -> Recipe:
    """The recipe of a run.

    Args:
        comparison: with the base, and how to fine-tune.
        rows: to train on, as chats.
        development: whose loss is measured during training; the held-out rows of the comparison are not touched. None:
            no rows.

    Returns:
        The recipe.

    Raises:
        UserError: `tune` is not valid; the message names the field.
    """
    for name in comparison.tune:
        if name not in SECTIONS:
            raise UserError(f"tune.{name} is not a section. Known: {', '.join(SECTIONS)}; rows are under data.")
    base = {**comparison.tune.get("base", {}), "path": comparison.base}
    train_section = {"precision": comparison.precision, **comparison.tune.get("train", {})}
    data: dict[str, Any] = {"train": [str(rows)], "format": "messages", "overflow": "drop"}
    data["held_out"] = 0.0 if development is None else [str(development)]
    values = {**comparison.tune, "base": base, "train": train_section, "data": data}
    return Recipe.from_values(values, "tune", Path.cwd())


def fine_tuned(recipe: Recipe, directory: Path, name: str, subscribers: Sequence[Subscriber]) -> Run:
    """Train a run, continue it, or take it if it has finished.

    Args:
        recipe: of the run.
        directory: where runs of the comparison are. One with another recipe or other rows has another name there.
        name: of the way.
        subscribers: receive the run's events.

    Returns:
        The finished run.

    Raises:
        UserError: it cannot be trained.
        KeyboardInterrupt: it was interrupted; the next call continues it.
    """
    contents = [Path(path).read_text(encoding="utf-8") for path in recipe.data.train]
    values = recipe.model_dump(mode="json", exclude={"data"})
    run = directory / f"{name}-{digest_of([values, contents])[:8]}"
    if not (run / "recipe.yaml").exists():
        done = train(recipe, run, (), subscribers)
    elif Run.open(run).finished:
        done = Run.open(run)
    else:
        done = resume(run, subscribers)
    if not done.finished:
        raise KeyboardInterrupt
    return done


def seconds_of_run(run: Run) -> float:
    """How long a finished run took, over all its parts.

    Args:
        run: finished.
    """
    return float(next((event["seconds"] for event in reversed(run.events()) if event["event"] == "end"), 0.0))
