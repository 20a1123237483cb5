"""`tunesmith schema`: the recipe's JSON schema, for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown page instead.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="The file to write; default: standard output.")
    ] = None,
) -> None:
    """Print the JSON schema of a recipe. Editors use it to complete and check recipes."""
    from tunesmith.config.schema import recipe_reference, recipe_schema
    from tunesmith.run import atomic_write, writing

    text = recipe_reference() if markdown else json.dumps(recipe_schema(), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        with writing(output), atomic_write(output) as file:
            file.write(text)
