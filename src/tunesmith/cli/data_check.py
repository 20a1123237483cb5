"""`tunesmith data check`: what is wrong with the data, and in which rows."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError

if TYPE_CHECKING:
    from tunesmith.checks.result import DataChecks

FAILED = 3
"""The exit code of --strict if a check of severity error marks rows, as that of a gate that is not passed."""

ROWS, ROWS_OF_JSON = 3, 10_000
"""Rows of each check that are listed if `--rows` does not say how many."""


def check(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files, directories, globs or hub data sets; or a recipe.")
    ] = None,
    only: Annotated[str, typer.Option(help="Run only these checks, separated by commas.")] = "",
    skip: Annotated[str, typer.Option(help="Leave these checks out, separated by commas.")] = "",
    against: Annotated[
        list[str] | None, typer.Option(help="Held-out files or benchmarks that the rows must not repeat.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Also render and tokenize as for this base: rows that are too long or unusable.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="Also find rows that mean the same, by this encoder: all-minilm-l6-v2.")
    ] = "",
    toxicity: Annotated[
        str, typer.Option(help="Also find toxic texts, by this classifier: a run or a model, NAME or NAME#LABEL.")
    ] = "",
    model: Annotated[
        str, typer.Option(help="Also find answers that do not belong to their prompt, by this model's losses.")
    ] = "",
    groups: Annotated[
        list[str] | None, typer.Option(help="YAML files with further words for groups of people.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Rows to list of each check. Default: 3, with --json 10,000.", min=0)
    ] = None,
    cache: Annotated[bool, typer.Option(help="Use what is known of the same content.")] = True,
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML page: figures, and marked rows in their place.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 3 if a check of severity error marks rows.")
    ] = False,
    checks: Annotated[bool, typer.Option("--checks", help="List the checks and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: rows, and each check with its rows.")] = False,
) -> None:
    """Check data before training: what is wrong, in which rows, and what to do."""
    with quick_imports():
        from tunesmith.checks.driver import check_data, subject_of
        from tunesmith.checks.registry import CHECKS, load
        from tunesmith.report.data_checks import Asked, list_checks, not_run, print_checks
        from tunesmith.report.progress import Progress

    console = Console(highlight=False)
    if checks:
        list_checks(console, [(each.name, each.severity, each.title) for each in map(load, CHECKS)])
        return
    if not paths:
        raise UserError("Name what to check: files, or a recipe. tunesmith data check --checks lists the checks.")
    subject: Any = paths if base is None else _with_base(paths, base)
    checked = subject_of(subject, against or [])
    with Progress(Console(stderr=True, highlight=False)) as progress:
        found = check_data(
            checked,
            only=_names(only),
            skip=_names(skip),
            groups=groups or [],
            encoder=encoder,
            toxicity=toxicity,
            model=model,
            subscribers=[progress],
            cache=cache,
        )
    given = {"--only": only, "--skip": skip, "--base": base, "--encoder": encoder, "--toxicity": toxicity,
             "--model": model}  # fmt: skip
    options = [f"{name} {shlex.quote(value)}" for name, value in given.items() if value]
    options += [f"--groups {shlex.quote(path)}" for path in groups or []]
    asked = Asked(paths, against or [], options, _names(only))
    if report is not None:
        from tunesmith.report.data_checks_page import write_checks_page

        written = write_checks_page(report, found, checked.files, checked.others, asked)
        typer.echo(f"Wrote {written}.", err=True)
    if as_json:
        _print_json(found, ROWS_OF_JSON if rows is None else rows)
        for lacking in not_run(found, asked.only):
            typer.echo(f"Not run: {lacking}.", err=True)
    else:
        print_checks(console, found, ROWS if rows is None else rows, asked, [*checked.files, *checked.others])
    if strict and found.failed:
        raise typer.Exit(FAILED)


def _print_json(found: "DataChecks", most: int) -> None:
    typer.echo(json.dumps(found.to_dict(most), ensure_ascii=False))
    for result in found.results:
        if result.count > most:
            typer.echo(f"{result.name}: {most:,} of {result.count:,} rows are listed; --rows lists more.", err=True)


def _with_base(paths: list[str], base: str) -> Any:
    from tunesmith.config.recipe import Recipe
    from tunesmith.data.format_detection import objective_of_file

    if any(Path(path).suffix in (".yaml", ".yml") for path in paths):
        raise UserError("--base is for data files; a recipe names its own base.")
    return Recipe.load(
        {"base": base, "data": {"train": paths, "held_out": 0.0}, "objective": {"kind": objective_of_file(paths)}}
    )


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]
