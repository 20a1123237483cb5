"""`tunesmith train RECIPE` and `tunesmith train --resume RUN`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError


def train(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a YAML file.")] = None,
    run: Annotated[Path | None, typer.Option("--run", help="The run's directory; default: a new one in runs/.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a field: --set train.learning_rate=1e-4.")
    ] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with this run instead.")] = None,
) -> None:
    """Train as the recipe says, or go on with an interrupted run."""
    if (recipe is None) == (resume is None):
        raise UserError("Give a recipe to start a run, or --resume RUN to go on with one.")
    if resume is not None and (overrides or run):
        raise UserError("--resume goes on with a run as it is; --set and --run belong to a new one.")
    with quick_imports():
        import tunesmith.training.stages as training
        from tunesmith.report.html import write_report
        from tunesmith.report.progress import Progress

    console = Console()
    with Progress(console) as progress:
        if resume is not None:
            finished = training.resume(resume, [progress])
        else:
            assert recipe is not None
            finished = training.train(recipe, run, overrides or [], [progress])
    for stage in finished.stages:
        write_report(stage)
    if not finished.finished:
        console.print(f"Interrupted; everything is saved. Go on with: tunesmith train --resume {finished.whole}")
        raise typer.Exit(130)
