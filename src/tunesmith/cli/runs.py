"""`tunesmith runs`: the runs there are, and how far each is."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def runs(
    folder: Annotated[Path, typer.Argument(help="Where the runs lie.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="For machines: a JSON list.")] = False,
) -> None:
    """List runs: base, method, how far, last losses."""
    from tunesmith.report.listing import list_runs
    from tunesmith.report.words import duration

    found = list_runs(folder)
    if as_json:
        typer.echo(json.dumps([asdict(run) for run in found], indent=2))
        return
    if not found:
        Console().print(f"No runs in {folder}. Begin one: tunesmith train recipe.yaml", highlight=False)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("run", "base", "method", "state"):
        table.add_column(title, overflow="fold")
    for title in ("step", "loss", "held out", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in found:
        table.add_row(
            run.name,
            run.base,
            run.method,
            run.state,
            f"{run.step:,}" if run.total_steps is None else f"{run.step:,}/{run.total_steps:,}",
            _figure(run.loss),
            _figure(run.held_out_loss),
            duration(run.seconds),
        )
    Console().print(table)


def _figure(value: float | str | None) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
