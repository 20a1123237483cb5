"""`tunesmith train RECIPE` and `tunesmith train --resume RUN`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError


def train(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a YAML file.")] = None,
    run: Annotated[Path | None, typer.Option("--run", help="The run directory; default: a new one in runs/.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field: --set train.learning_rate=1e-4.")
    ] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Resume this run instead.")] = None,
) -> None:
    """Train a recipe, or resume an interrupted run."""
    if (recipe is None) == (resume is None):
        raise UserError("Give a recipe to start a run, or --resume RUN to resume one.")
    if resume is not None and (overrides or run):
        raise UserError("--resume continues a run with its own recipe, so it takes no --set and no --run.")
    if resume is not None:  # what is no run or no YAML is refused before the imports, which take seconds
        from tunesmith.run import PIPELINE_FILE, Run

        if not (resume / PIPELINE_FILE).exists():
            Run.open(resume)
    elif recipe is not None:
        from tunesmith.config.yaml_text import read_yaml

        read_yaml(recipe)
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
        console.print(
            f"Interrupted; everything is saved. Resume: tunesmith train --resume {finished.pipeline_directory}"
        )
        raise typer.Exit(130)
