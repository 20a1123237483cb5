"""`tunesmith runs`: all runs, and how far each one is."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tunesmith.report.colors import ALSO, BAD, GOOD, WARNING

if TYPE_CHECKING:
    from tunesmith.report.listing import Listed

WIDE = 110
"""Terminal columns from which a run takes one line; a narrower terminal needs two."""

STYLES = {"done": GOOD, "running": ALSO, "interrupted": WARNING, "started": "dim", "unreadable": BAD}


def runs(
    directory: Annotated[Path, typer.Argument(help="The directory that contains the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs: start, base, method, progress, last losses."""
    from tunesmith.report.formatting import duration, figure
    from tunesmith.report.listing import list_runs

    listed = list_runs(directory)
    if as_json:
        typer.echo(json.dumps([asdict(run) for run in listed], indent=2))
        return
    console = Console(highlight=False)
    if not listed:
        console.print(f"No runs in {directory}. Start one: tunesmith train recipe.yaml", markup=False)
        return
    separator = "\n" if console.width < WIDE else " "
    left = [Column(title, overflow="fold") for title in ("run", "started", "what")]
    right = [Column(title, justify="right", no_wrap=True) for title in ("loss", "held out", "time")]
    state = Column("state", no_wrap=True)
    table = Table(*left, state, *right, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.leading = int(separator == "\n")
    for run in listed:
        table.add_row(
            Text(run.name),
            Text((run.started or "")[:16].replace("T", separator)),
            Text("" if run.state == "unreadable" else f"{run.method} on{separator}{run.base}"),
            Text(_progress(run, separator), style=STYLES[run.state]),
            "" if run.loss is None else figure(run.loss),
            "" if run.held_out_loss is None else figure(run.held_out_loss),
            duration(run.seconds if run.seconds < 600 else 60 * round(run.seconds / 60)) if run.step else "",
        )
    console.print(table)
    if any(run.state == "interrupted" for run in listed):
        console.print()
        console.print("Resume an interrupted run: tunesmith train --resume RUN", style="dim")


def _progress(run: "Listed", separator: str) -> str:
    if run.state in ("started", "unreadable"):
        return "started" if run.state == "started" else run.state
    if run.state == "done":
        return f"done{separator}{run.step:,} steps"
    of = "" if run.total_steps is None else f"/{run.total_steps:,}"
    return f"{run.state}{separator}{run.step:,}{of}"
