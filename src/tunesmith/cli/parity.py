"""`tunesmith parity A B`: whether a stored or served form of a model is still that model."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports


def parity(
    model: Annotated[str, typer.Argument(help="A run, an adapter, a model directory, a hub name, or embedded.")],
    form: Annotated[str, typer.Argument(help="A GGUF file, a model directory, http://… of a server, or another run.")],
    rows: Annotated[int, typer.Option(help="How many rows to compare on.", min=1)] = 32,
    data: Annotated[
        Path | None, typer.Option(help="A file of rows; default: the run's held-out rows, else built-in questions.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens in an answer.", min=1)] = 128,
    api_key: Annotated[str | None, typer.Option(help="For a server.", envvar="TUNESMITH_API_KEY")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the content of parity.json.")] = False,
) -> None:
    """Compare a form of a model with the model: token ids, next tokens, loss, answers. Exit code 2: they differ."""
    with quick_imports():
        from tunesmith.proving.parity import parity as compare
        from tunesmith.report.parity import parity_table
        from tunesmith.report.progress import Progress

    console = Console(highlight=False)
    with Progress(Console(stderr=True, highlight=False) if as_json else console) as progress:
        result = compare(
            model, form, rows=rows, data=data, max_new_tokens=max_new_tokens, api_key=api_key, subscribers=[progress]
        )
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        console.print(parity_table(result))
    if not result["passed"]:
        raise typer.Exit(2)
