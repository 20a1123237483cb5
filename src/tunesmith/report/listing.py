"""The runs in a folder, each in a line: for the terminal and for machines."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.config.yaml_text import read_yaml
from tunesmith.errors import UserError
from tunesmith.report.formatting import number
from tunesmith.run import Event, Run

STILL_WRITING = 120.0
"""Seconds since the last event within which an unfinished run is taken to be running: longer than most steps."""

State = Literal["done", "running", "interrupted", "begun", "unreadable"]


@dataclass(frozen=True, slots=True)
class Listed:
    """A run at a glance.

    Attributes:
        name: of its directory, from the listed folder.
        begun: when, as ISO 8601 with the time zone; None where nothing tells.
        base, method: what the recipe says; "?" where it cannot be read.
        state: `done`; `running`, if something was written just now; `interrupted`, which `--resume` goes on from;
            `begun`, before the first step; or `unreadable`.
        step, total_steps: how far it is; 0 and None before the first step.
        loss: of the last step, in nats a learnt token; "nan" and "inf" as in `metrics.jsonl`.
        held_out_loss: of the last evaluation.
        seconds: of training so far.
    """

    name: str
    begun: str | None
    base: str
    method: str
    state: State
    step: int = 0
    total_steps: int | None = None
    loss: float | str | None = None
    held_out_loss: float | str | None = None
    seconds: float = 0.0


def list_runs(directory: Path) -> list[Listed]:
    """Every run in the folder, at most two levels down, by name.

    Raises:
        UserError: there is no such folder.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory. Runs lie in runs/ unless --run says otherwise; name theirs.")
    recipes = sorted(
        {*directory.glob("recipe.yaml"), *directory.glob("*/recipe.yaml"), *directory.glob("*/*/recipe.yaml")}
    )
    places = [recipe.parent for recipe in recipes if _is_run(recipe.parent)]
    return [_listed(place, str(place.relative_to(directory)) if place != directory else place.name) for place in places]


def _is_run(place: Path) -> bool:
    """A recipe beside which nothing of a run lies is somebody's own recipe."""
    return any((place / name).exists() for name in ("provenance.json", "metrics.jsonl", "checkpoints"))


def _listed(place: Path, name: str) -> Listed:
    run = Run(place)
    try:
        recipe = read_yaml(place / "recipe.yaml")
        events = run.events()
        begun = _begun(place)
    except (UserError, OSError, ValueError):
        return Listed(name, None, "?", "?", "unreadable")
    last = {event["event"]: event for event in events}
    step = last.get("step", {})
    return Listed(
        name,
        begun,
        Path(_named(recipe.get("base", "embedded"), "path")).name,
        _named(recipe.get("method", "lora"), "kind"),
        _state(run, events),
        step=step.get("step", 0),
        total_steps=step.get("total_steps", last.get("start", {}).get("total_steps")),
        loss=step.get("loss"),
        held_out_loss=last.get("evaluation", {}).get("loss"),
        seconds=sum(number(event.get("seconds", 0)) for event in events if event["event"] == "step"),
    )


def _state(run: Run, events: list[Event]) -> State:
    if run.finished:
        return "done"
    kinds = [event["event"] for event in events]
    metrics = run.directory / "metrics.jsonl"
    if kinds and kinds[-1] != "end" and time.time() - metrics.stat().st_mtime < STILL_WRITING:
        return "running"
    return "interrupted" if "step" in kinds else "begun"


def _begun(place: Path) -> str | None:
    path = place / "provenance.json"
    if not path.exists():
        return None
    created = json.loads(path.read_text(encoding="utf-8")).get("created")
    return None if created is None else str(created)


def _named(value: Any, field: str) -> str:
    """A recipe's choice is a word or a mapping that holds it."""
    return str(value.get(field, "?")) if isinstance(value, dict) else str(value)
