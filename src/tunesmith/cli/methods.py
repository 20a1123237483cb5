"""`tunesmith methods`: which there are, what each trains on a base, and when to choose it."""

import json
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports


def methods(
    base: Annotated[
        str, typer.Option(help="Count what each trains on this base; no weight of it is read.")
    ] = "embedded",
    as_json: Annotated[bool, typer.Option("--json", help="For tools.")] = False,
) -> None:
    """List the methods: formula, numbers trained, learning rate, and when to choose each."""
    with quick_imports():
        from tunesmith.methods.catalog import catalog
        from tunesmith.report.table import methods_table

    found = catalog(base)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(methods_table(found))
