"""`tunesmith data review`: look at rows and say which to keep, one key a row."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.pressed_keys import KeyPrompt, pressed_keys, user_name
from tunesmith.cli.quick import quick_imports


def review(
    file: Annotated[Path, typer.Argument(help="Rows to look at, for example of tunesmith data sample.")],
    output: Annotated[
        Path | None, typer.Option(help="The file that verdicts are appended to; default: FILE.verdicts.jsonl.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label that a key gives a row; up to nine.")] = None,
    reviewer: Annotated[str | None, typer.Option(help="Who reviews; default: the name of the user.")] = None,
) -> None:
    """Look at rows one by one, with what checks say, and keep, drop or relabel each with one key. The same command
    continues where it was left; `tunesmith data clean --verdicts` does what was said."""
    with quick_imports():
        from tunesmith.curation.review import data_review
        from tunesmith.report.progress import Progress
        from tunesmith.report.review import reviewed_text, row_to_review

    console = Console(highlight=False)
    progress = Progress(console)
    with progress, pressed_keys() as keys:
        prompt = KeyPrompt(console, keys, progress, "Verdicts", "k, d, s")
        found = data_review(
            file, lambda shown: prompt.ask(row_to_review(shown), shown.keys), output, labels=label or [],
            subscribers=[progress], reviewer=user_name("--reviewer") if reviewer is None else reviewer,
        )  # fmt: skip
    console.print()
    console.print(reviewed_text(found), soft_wrap=True)
    if found.done < found.rows:
        console.print("The same command continues here.", soft_wrap=True)
