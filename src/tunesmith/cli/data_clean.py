"""`tunesmith data clean` and `restore`: a cleaned copy of the rows, and the way back."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.data_acts import Output, Sources
from tunesmith.cli.quick import quick_imports


def clean(
    sources: Sources,
    output: Output,
    do: Annotated[
        list[str] | None,
        typer.Option(help="CHECK=ACTION, for example near_duplicates=keep: drop, keep, fix or mask what it marks."),
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Held-out files or benchmarks; rows that are also there are dropped.")
    ] = None,
    verdicts: Annotated[list[str] | None, typer.Option(help="Files that tunesmith data review wrote.")] = None,
    keep_secrets: Annotated[
        bool, typer.Option("--keep-secrets", help="Keep personal data and secrets in the ledger, to restore them.")
    ] = False,
    seed: Annotated[str, typer.Option(help="Of the pseudonyms; who knows it can test who is behind one.")] = "0",
) -> None:
    """Write a cleaned copy of the rows, and a ledger with each row's fate and reason, which restore undoes."""
    with quick_imports():
        from tunesmith.curation.clean import data_clean
        from tunesmith.curation.policy import changes_of
        from tunesmith.report.curation import cleaned_parts
        from tunesmith.report.progress import Progress

    console = Console(highlight=False)
    with Progress(console) as progress:
        found = data_clean(
            sources, output, actions=changes_of(do or []), against=against or [], verdicts=verdicts or [],
            keep_secrets=keep_secrets, seed=seed, subscribers=[progress],
        )  # fmt: skip
    for part in cleaned_parts(found):
        console.print(part, soft_wrap=True)


def restore(
    cleaned: Annotated[Path, typer.Argument(help="A file that tunesmith data clean wrote, with its ledger beside it.")],
    output: Annotated[Path, typer.Option(help="The file to write, or the directory if there were several files.")],
) -> None:
    """Write the files that a cleaned file was made of."""
    with quick_imports():
        from tunesmith.curation.restore import data_restore
        from tunesmith.report.curation import restored_parts

    console = Console(highlight=False)
    for part in restored_parts(data_restore(cleaned, output)):
        console.print(part, soft_wrap=True)
