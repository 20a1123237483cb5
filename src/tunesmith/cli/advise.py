"""`tunesmith advise`: eight questions before there are data, and a `compare.yaml` to go on with."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.comparing.answers import CHANGES, FACTS_CHANGE, Answers
from tunesmith.errors import UserError

Kind = Callable[[str], Any]
"""Reads an answer; ValueError says what is wrong with it."""


def _one_of(known: Sequence[str]) -> Kind:
    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"Known: {', '.join(known)}.")
        return text

    return read


def _at_least(least: float, number: type[int] | type[float]) -> Kind:
    def read(text: str) -> float:
        try:
            value = number(text)
        except ValueError:
            raise ValueError("That is no number.") from None
        if not value >= least:
            raise ValueError(f"It is at least {least:g}.")
        return value

    return read


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("y", "yes", "n", "no"):
        raise ValueError("Answer y or n.")
    return text.lower().startswith("y")


QUESTIONS: dict[str, tuple[str, Kind]] = {
    "change": (
        "What must change? facts in documents, form or style, labels, reasoning, both facts and form",
        _one_of(CHANGES),
    ),
    "facts_change": (f"How often do the facts change? {', '.join(FACTS_CHANGE)}", _one_of(FACTS_CHANGE)),
    "rows": ("How many labeled rows are there, or could there be?", _at_least(0, int)),
    "documents": ("How many megabytes of documents?", _at_least(0, float)),
    "requests": ("How many requests per month?", _at_least(1, int)),
    "latency": ("Longest acceptable seconds for an answer? 0: any", _at_least(0, float)),
    "hosted": ("May data go to a hosted model? y or n", _yes_or_no),
    "base": ("Which base? A directory, a hub name, or a short name", str),
    "device": ("On which device? here, or one of tunesmith plan --devices", str),
}
"""By answer: the question, and what reads it. Base and device are one question."""

PRICES: dict[str, tuple[str, Kind]] = {
    "price_in": ("The hosted model's price of a million tokens read?", _at_least(0, float)),
    "price_out": ("And of a million tokens written?", _at_least(0, float)),
}
"""Asked if data may go to a hosted model."""

DEFAULTS = {each.name: each.default for each in fields(Answers) if each.default is not MISSING} | {"latency": 0.0}
"""In a terminal, 0 seconds stand for any latency."""


def advise(
    change: Annotated[
        str | None, typer.Option(help=f"What must change: {', '.join(CHANGES)} (facts and form).")
    ] = None,
    facts_change: Annotated[
        str | None, typer.Option("--facts-change", help=f"How often facts change: {', '.join(FACTS_CHANGE)}.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Labeled rows that there are or could be.", min=0)] = None,
    documents: Annotated[float | None, typer.Option(help="Megabytes of documents.", min=0)] = None,
    requests: Annotated[int | None, typer.Option(help="Requests per month.", min=1)] = None,
    latency: Annotated[float | None, typer.Option(help="Longest acceptable seconds; 0: any.", min=0)] = None,
    hosted: Annotated[
        bool | None, typer.Option("--hosted/--no-hosted", help="Whether data may go to a hosted model.")
    ] = None,
    price_in: Annotated[
        float | None, typer.Option("--price-in", help="Of a hosted model: a million tokens read.", min=0)
    ] = None,
    price_out: Annotated[float | None, typer.Option("--price-out", help="A million tokens written.", min=0)] = None,
    base: Annotated[str | None, typer.Option(help="A directory, a hub name, or a short name.")] = None,
    device: Annotated[str | None, typer.Option(help="here, or a device of tunesmith plan --devices.")] = None,
    output: Annotated[Path, typer.Option(help="The comparison to write.")] = Path("compare.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Before there are data: eight questions, and which ways to compare, by published figures and planned costs.

    What no option answers is asked in a terminal, and otherwise has a default.
    """
    with quick_imports():
        from tunesmith.run import jsonable, refuse_existing

    refuse_existing(output)
    given = {
        "change": change, "facts_change": facts_change, "rows": rows, "documents": documents, "requests": requests,
        "latency": latency, "hosted": hosted, "base": base, "device": device,
    }  # fmt: skip
    answers, assumed = _answered(given)
    prices: dict[str, Any] = {"price_in": price_in, "price_out": price_out}
    if answers["hosted"] and sys.stdin.isatty():
        prices |= {name: _ask(*PRICES[name], 0.0) for name, price in prices.items() if price is None}
    with quick_imports():
        from tunesmith.comparing.advise import advise as advise_function
        from tunesmith.report.advice import advice_text

    errors = Console(stderr=True, highlight=False)
    with errors.status("Planning"):
        result = advise_function(**answers, **prices, output=output)
    if as_json:
        typer.echo(json.dumps(jsonable(result | {"assumed": assumed}), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if assumed:
        stated = " ".join(_option(name, answers[name]) for name in assumed)
        console.print(f"Assumed, since no option says otherwise: {stated}")
    console.print(advice_text(result))
    console.print(f"Wrote {output}. Fill it in, then: tunesmith compare {output}", soft_wrap=True)


def _answered(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """All answers: given, asked for in a terminal, or by default; and the names of those by default.

    Raises:
        UserError: nobody says what must change.
    """
    answers, missing = dict(given), [name for name, value in given.items() if value is None]
    asks = sys.stdin.isatty()
    if not asks and "change" in missing:
        raise UserError(f"--change is missing: what must change? Give one of: {', '.join(CHANGES)}.")
    for name in missing:
        answers[name] = _ask(*QUESTIONS[name], DEFAULTS.get(name)) if asks else DEFAULTS[name]
    return answers | {"latency": answers["latency"] or None}, [] if asks else missing


def _option(name: str, value: Any) -> str:
    """The option that gives an answer."""
    option = name.replace("_", "-")
    return f"--no-{option}" if value is False else f"--{option} {value or 0}"


def _ask(question: str, kind: Kind, default: Any) -> Any:
    """Ask in the terminal until the answer can be read; the question goes to standard error."""
    shown = "n" if default is False else default
    while True:
        try:
            return kind(typer.prompt(question, default=None if shown is None else str(shown), err=True).strip())
        except ValueError as error:
            typer.echo(str(error), err=True)
