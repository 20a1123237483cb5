"""`tunesmith methods`: all methods, how many parameters each trains on a base, and when to choose it."""

import json
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports


def methods(
    base: Annotated[
        str, typer.Option(help="Count the trained parameters on this base; none of its weights are read.")
    ] = "embedded",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods: formula, trained parameters, learning rate, and when to choose each."""
    from tunesmith.config.method_list import list_methods
    from tunesmith.report.table import methods_table

    with quick_imports():
        rows = list_methods(base)  # may import every library that a method needs
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(methods_table(rows))
