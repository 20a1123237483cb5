"""Lists the runs in a directory: for the terminal and as JSON."""

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
"""An unfinished run counts as running for this many seconds after its last event: longer than most steps."""

State = Literal["done", "running", "interrupted", "started", "unreadable"]


@dataclass(frozen=True, slots=True)
class Listed:
    """Summary of a run.

    Attributes:
        name: path of its directory, relative to the listed directory.
        started: start time, as ISO 8601 with the time zone; None if unknown.
        base, method: from the recipe; "?" if it cannot be read.
        state: `done`; `running`, if its last event is recent; `interrupted`, which `--resume` can continue; `started`,
            before the first step; or `unreadable`.
        step, total_steps: progress; 0 and None before the first step.
        loss: of the last step, in the run's loss unit; "nan" and "inf" as in `metrics.jsonl`.
        held_out_loss: of the last evaluation.
        seconds: of the run so far, evaluations and checkpoints included.
    """

    name: str
    started: str | None
    base: str
    method: str
    state: State
    step: int = 0
    total_steps: int | None = None
    loss: float | str | None = None
    held_out_loss: float | str | None = None
    seconds: float = 0.0


def list_runs(directory: str | Path = "runs") -> list[Listed]:
    """All runs in a directory, at most two levels down, sorted by name.

    Args:
        directory: which contains the runs.

    Returns:
        A summary of each.

    Raises:
        UserError: there is no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not a directory. Runs are in runs/ unless --run was set; give their directory."
        )
    recipes = sorted(
        {*directory.glob("recipe.yaml"), *directory.glob("*/recipe.yaml"), *directory.glob("*/*/recipe.yaml")}
    )
    runs = [recipe.parent for recipe in recipes if _is_run(recipe.parent)]
    return [_listed(run, str(run.relative_to(directory)) if run != directory else run.name) for run in runs]


def _is_run(directory: Path) -> bool:
    """A recipe without any other files of a run is a user's own recipe."""
    return any((directory / name).exists() for name in ("provenance.json", "metrics.jsonl", "checkpoints"))


def _listed(directory: Path, name: str) -> Listed:
    run = Run(directory)
    try:
        recipe = read_yaml(directory / "recipe.yaml")
        events = run.events()
        started = _start_time(directory)
    except (UserError, OSError, ValueError):
        return Listed(name, None, "?", "?", "unreadable")
    last = {event["event"]: event for event in events}
    step = last.get("step", {})
    return Listed(
        name,
        started,
        Path(_name_in(recipe.get("base", "embedded"), "path")).name,
        _name_in(recipe.get("method", "lora"), "kind"),
        _state(run, events),
        step=step.get("step", 0),
        total_steps=step.get("total_steps", last.get("start", {}).get("total_steps")),
        loss=step.get("loss"),
        held_out_loss=last.get("evaluation", {}).get("loss"),
        seconds=_seconds(events),
    )


def _seconds(events: list[Event]) -> float:
    """The run's own sum at its end; before, without the time until its first step."""
    if events and events[-1]["event"] == "end":
        return number(events[-1].get("seconds"))
    timed = ("step", "evaluation", "checkpoint")
    return sum(number(event.get("seconds", 0)) for event in events if event["event"] in timed)


def _state(run: Run, events: list[Event]) -> State:
    if run.finished:
        return "done"
    kinds = [event["event"] for event in events]
    metrics = run.directory / "metrics.jsonl"
    if kinds and kinds[-1] != "end" and time.time() - metrics.stat().st_mtime < STILL_WRITING:
        return "running"
    return "interrupted" if "step" in kinds else "started"


def _start_time(directory: Path) -> str | None:
    path = directory / "provenance.json"
    if not path.exists():
        return None
    created = json.loads(path.read_text(encoding="utf-8")).get("created")
    return None if created is None else str(created)


def _name_in(value: Any, field: str) -> str:
    """A recipe names a base or a method by a string, or in a field of a mapping."""
    return str(value.get(field, "?")) if isinstance(value, dict) else str(value)
