"""`tunesmith init DATA`: a commented first recipe."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError


def init(
    data: Annotated[list[str], typer.Argument(help="Files, directories, globs, or a hub data set.")],
    output: Annotated[Path, typer.Option("--output", help="The recipe to write.")] = Path("recipe.yaml"),
    base: Annotated[str, typer.Option(help="embedded, a model's directory, or a hub name.")] = "embedded",
) -> None:
    """Look at the data and write a recipe, with the reason for each value."""
    if output.exists():
        raise UserError(f"{output} is there already. Name another file with --output.")
    with quick_imports():
        from tunesmith.config.suggestion import suggest
        from tunesmith.run import atomic_write

    text, seen = suggest(data, base)
    try:
        with atomic_write(output) as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}.") from None
    console = Console(highlight=False)
    console.print(
        f"{seen.rows:,} rows of the form {seen.format}; of those looked at, half are longer than "
        f"{seen.median_length:,} tokens, the longest has {int(seen.lengths.max()):,}."
    )
    if seen.malformed or seen.unusable:
        console.print(
            f"{seen.malformed:,} rows are malformed, {seen.unusable:,} cannot be learnt from.", style="yellow"
        )
    console.print(f"Wrote {output}. Next: tunesmith train {output}", soft_wrap=True)
