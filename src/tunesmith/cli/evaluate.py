"""`tunesmith evaluate RUN`: the tuned model beside its base on held-out rows."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError


def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    rows: Annotated[
        str, typer.Option(help="How many held-out rows to generate answers for, or all; the loss uses all.")
    ] = "200",
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens in an answer.", min=1)] = 128,
    repetition_penalty: Annotated[
        float, typer.Option(help="1: none; 1.2 keeps small models out of loops.", min=1)
    ] = 1.0,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Also this metric of yours: module:function, in the working directory or installed."),
    ] = None,
) -> None:
    """Compare a run with its base on held-out rows: loss, perplexity, metrics, samples, each with its uncertainty."""
    most = _rows(rows)
    with quick_imports():
        import tunesmith.evaluation.compare as comparison
        from tunesmith.evaluation.metrics import METRICS, metric_named
        from tunesmith.report.html import write_report
        from tunesmith.report.progress import Progress
        from tunesmith.report.table import evaluation_table, samples_table

    console = Console(highlight=False)
    metrics = {**METRICS, **{name: metric_named(name, Path.cwd()) for name in metric or []}}
    with Progress(console) as progress:
        result = comparison.evaluate(run, most, max_new_tokens, repetition_penalty, [progress], metrics)
    console.print(evaluation_table(result))
    console.print(samples_table(result["samples"]))
    console.print(f"Written to {run}/evaluation.json and {write_report(run)}", soft_wrap=True)


def _rows(text: str) -> int | None:
    """The number of rows; None for all."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"--rows {text} is not a number of rows. Use a number from 1 on, or all.")
    return int(text)
