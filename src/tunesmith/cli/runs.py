"""`tunesmith runs`: the runs there are, and how far each is."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from tunesmith.report.listing import Listed

WIDE = 110
"""Columns from which a run has a line; below, two."""

STYLES = {"done": "green", "running": "cyan", "interrupted": "yellow", "begun": "dim", "unreadable": "red"}


def runs(
    directory: Annotated[Path, typer.Argument(help="Where the runs lie.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="For machines: a JSON list.")] = False,
) -> None:
    """List runs: when begun, base, method, how far, last losses."""
    from tunesmith.report.formatting import duration, figure
    from tunesmith.report.listing import list_runs

    found = list_runs(directory)
    if as_json:
        typer.echo(json.dumps([asdict(run) for run in found], indent=2))
        return
    console = Console(highlight=False)
    if not found:
        console.print(f"No runs in {directory}. Begin one: tunesmith train recipe.yaml", markup=False)
        return
    apart = "\n" if console.width < WIDE else " "
    left = [Column(title, overflow="fold") for title in ("run", "begun", "what")]
    right = [Column(title, justify="right", no_wrap=True) for title in ("loss", "held out", "time")]
    state = Column("state", no_wrap=True)
    table = Table(*left, state, *right, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.leading = int(apart == "\n")
    for run in found:
        table.add_row(
            Text(run.name),
            Text((run.begun or "")[:16].replace("T", apart)),
            Text("" if run.state == "unreadable" else f"{run.method} on{apart}{run.base}"),
            Text(_how_far(run, apart), style=STYLES[run.state]),
            "" if run.loss is None else figure(run.loss),
            "" if run.held_out_loss is None else figure(run.held_out_loss),
            duration(run.seconds if run.seconds < 600 else 60 * round(run.seconds / 60)) if run.step else "",
        )
    console.print(table)
    if any(run.state == "interrupted" for run in found):
        console.print()
        console.print("Go on with an interrupted one: tunesmith train --resume RUN", style="dim")


def _how_far(run: "Listed", apart: str) -> str:
    if run.state in ("begun", "unreadable"):
        return "just begun" if run.state == "begun" else run.state
    if run.state == "done":
        return f"done{apart}{run.step:,} steps"
    of = "" if run.total_steps is None else f"/{run.total_steps:,}"
    return f"{run.state}{apart}{run.step:,}{of}"
