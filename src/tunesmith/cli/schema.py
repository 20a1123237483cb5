"""`tunesmith schema`: the recipe's JSON schema, for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", help="A file to write it to; default: standard output.")
    ] = None,
) -> None:
    """Print the JSON schema of a recipe: editors complete and check recipes by it."""
    from tunesmith.recipe import recipe_schema
    from tunesmith.run import atomic_write

    text = json.dumps(recipe_schema(), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        with atomic_write(output) as file:
            file.write(text)
