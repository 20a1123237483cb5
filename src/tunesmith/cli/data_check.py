"""`tunesmith data check`: what is wrong with the data, and in which rows."""

import json
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports

FAILED = 3
"""The exit code of --strict if a check of severity error marks rows, as that of a gate that is not passed."""


def check(
    paths: Annotated[list[str], typer.Argument(help="Files, directories, globs or hub data sets; or a recipe.")],
    only: Annotated[str, typer.Option(help="Run only these checks, separated by commas.")] = "",
    skip: Annotated[str, typer.Option(help="Leave these checks out, separated by commas.")] = "",
    against: Annotated[
        list[str] | None, typer.Option(help="Held-out files or benchmarks that the rows must not repeat.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Rows to list of each check. Default: 3, with --json 10,000.", min=0)
    ] = None,
    cache: Annotated[bool, typer.Option(help="Use what is known of the same content.")] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 3 if a check of severity error marks rows.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: rows, and each check with its rows.")] = False,
) -> None:
    """Check data before training: what is wrong, in which rows, and what to do."""
    with quick_imports():
        from tunesmith.checks.driver import check_data
        from tunesmith.report.data_checks import print_checks
        from tunesmith.report.progress import Progress

    console = Console(highlight=False)
    with Progress(Console(stderr=True, highlight=False)) as progress:
        found = check_data(
            paths, only=_names(only), skip=_names(skip), against=against or [], subscribers=[progress], cache=cache
        )
    if as_json:
        most = 10_000 if rows is None else rows
        typer.echo(json.dumps(found.to_dict(most), ensure_ascii=False))
        for result in found.results:
            if result.count > most:
                typer.echo(f"{result.name}: {most:,} of {result.count:,} rows are listed; --rows lists more.", err=True)
    else:
        print_checks(console, found, 3 if rows is None else rows)
    if strict and found.failed:
        raise typer.Exit(FAILED)


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]
