"""`tunesmith init DATA`: a suggested recipe with comments."""

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
        raise UserError(f"{output} already exists. Choose another file with --output.")
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
        f"{seen.rows:,} rows in the format {seen.format}. Sampled rows have a median of {seen.median_length:,} tokens; "
        f"the longest has {int(seen.lengths.max()):,}."
    )
    if seen.malformed or seen.unusable:
        console.print(f"{seen.malformed:,} rows are malformed, {seen.unusable:,} cannot be trained on.", style="yellow")
    console.print(f"Wrote {output}. Next: tunesmith train {output}", soft_wrap=True)
