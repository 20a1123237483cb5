"""The runs in a folder, each in a line: for the terminal and for machines."""

from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.recipe import Recipe
from tunesmith.run import Run


@dataclass(frozen=True, slots=True)
class Listed:
    """A run at a glance.

    Attributes:
        name: of its directory, from the listed folder.
        base, method: what the recipe says; "?" where it cannot be read.
        state: `done`, `interrupted`, `begun` or `unreadable`.
        step, total_steps: how far it is.
        loss: of the last step, in nats a learnt token.
        held_out_loss: of the last evaluation.
        seconds: of training so far.
    """

    name: str
    base: str
    method: str
    state: str
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    held_out_loss: float | None = None
    seconds: float = 0.0


def list_runs(folder: Path) -> list[Listed]:
    """Every run in the folder, at most two levels down, by name.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no directory. Runs lie in runs/ unless --run says otherwise; name theirs.")
    recipes = sorted({*folder.glob("recipe.yaml"), *folder.glob("*/recipe.yaml"), *folder.glob("*/*/recipe.yaml")})
    places = [recipe.parent for recipe in recipes if _is_run(recipe.parent)]
    return [_listed(place, str(place.relative_to(folder)) if place != folder else place.name) for place in places]


def _is_run(place: Path) -> bool:
    """A recipe beside which nothing of a run lies is somebody's own recipe."""
    return any((place / name).exists() for name in ("provenance.json", "metrics.jsonl", "checkpoints"))


def _listed(place: Path, name: str) -> Listed:
    run = Run(place)
    try:
        recipe = Recipe.load(place / "recipe.yaml")
        events = run.events()
    except (UserError, ValueError):
        return Listed(name, "?", "?", "unreadable")
    last = {event["event"]: event for event in events}
    step = last.get("step", {})
    state = "done" if run.finished else "interrupted" if step else "begun"
    return Listed(
        name,
        Path(recipe.base.model).name,
        recipe.method.kind,
        state,
        step=step.get("step", 0),
        total_steps=last.get("start", {}).get("total_steps"),
        loss=step.get("loss"),
        held_out_loss=last.get("evaluation", {}).get("loss"),
        seconds=sum(event["seconds"] for event in events if event["event"] == "step"),
    )
