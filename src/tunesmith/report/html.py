"""A run as one HTML page: outcome, charts, data, predicted and measured cost, samples, provenance."""

import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tunesmith.report.comparison import CUT_LINES, Comparison, compared
from tunesmith.report.curves import curves, lengths
from tunesmith.report.error_tables import error_tables
from tunesmith.report.formatting import (
    LOSS_UNIT,
    count,
    describe_base,
    describe_method,
    duration,
    figure,
    number,
    off_by,
    size,
    sizes,
)
from tunesmith.report.sampled import sampled
from tunesmith.run import Event, Run, atomic_write, writing

COUNTS = {
    "rows": "rows read",
    "malformed": "malformed rows, left out",
    "unusable": "unusable rows, left out",
    "boilerplate": "characters of navigation, scripts and footers, left out of web pages",
    "separate_turns": "earlier turns turned into separate examples",
    "truncated": "examples truncated to the maximum length",
    "split": "examples split at the maximum length",
    "dropped": "examples over the maximum length, left out",
    "joined": "rows cut from concatenated documents",
    "unlearnable": "pieces without loss tokens, left out",
    "examples": "training examples",
    "tokens": "their tokens",
    "loss_tokens": "of which are loss tokens",
    "held_out_rows": "held-out examples",
    "held_out_tokens": "their tokens",
    "held_out_loss_tokens": "of which are loss tokens",
    "longest": "tokens in the longest example, before any cut",
}
"""Labels of the counts in a `data` event, in this order."""

PAGE = "report.html.jinja"
"""Of a run or an evaluation."""

ALWAYS = {"rows", "malformed", "examples", "tokens", "loss_tokens", "held_out_rows"}
"""Counts that are shown even at zero: it is good to know that no row was malformed."""


def write_report(directory: Path) -> Path:
    """Write `report.html` into the run's directory, from the files in it; the run need not be finished.

    Args:
        directory: of the run.

    Returns:
        The path of the page.

    Raises:
        UserError: the directory is not a run.
    """
    run = Run.open(directory)
    return fill_page(PAGE, run.directory, _shown(run))


def write_evaluation_page(directory: Path) -> Path:
    """Write `report.html` beside an `evaluation.json` that belongs to no run.

    Args:
        directory: of both.

    Returns:
        The path of the page.
    """
    evaluation = _read_json(directory / "evaluation.json")
    comparison = compared(evaluation)
    shown = {
        "name": directory.resolve().name,
        "outcome": comparison.verdict,
        "comparison": comparison,
        "cut_lines": CUT_LINES,
        "charts": [Markup(chart) for chart in comparison.charts],
        "errors": error_tables(evaluation),
    }
    return fill_page(PAGE, directory, shown)


def fill_page(template: str, directory: Path, shown: dict[str, Any], name: str = "report.html") -> Path:
    """Fill a page, and write it.

    Args:
        template: a file of this package.
        directory: of the page.
        shown: the template's variables.
        name: of the page.

    Returns:
        The path of the page.

    Raises:
        UserError: it cannot be written.
    """
    pages = Environment(
        loader=PackageLoader("tunesmith.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    path = directory / name
    with writing(path), atomic_write(path) as file:
        file.write(pages.get_template(template).render(**shown))
    return path


def _shown(run: Run) -> dict[str, Any]:
    kinds: dict[str, list[Event]] = {}
    for event in run.events():
        kinds.setdefault(event["event"], []).append(event)
    evaluation, provenance = (_read_json(run.directory / name) for name in ("evaluation.json", "provenance.json"))
    data = _last(kinds, "data")
    comparison = compared(evaluation) if evaluation else None
    unit = _last(kinds, "start").get("loss_unit", LOSS_UNIT)
    return {
        "name": run.directory.name,
        "outcome": _outcome(kinds, comparison),
        "facts": _facts(kinds, run, provenance),
        "figures": [Markup(chart) for chart in curves(kinds.get("step", []), kinds.get("evaluation", []), unit)],
        "sampled": sampled(kinds.get("sample", [])),
        "counts": [
            (label, _with_share(data, name))
            for name, label in COUNTS.items()
            if data.get(name) or name in ALWAYS & {*data}
        ],
        "sources": [_source(source, data) for source in data.get("sources", ())],
        "format": data.get("format"),
        "histogram": Markup(lengths(data)),
        "bad_rows": [*data.get("malformed_rows", ()), *data.get("unusable_rows", ())],
        "bad_total": (data.get("malformed") or 0) + (data.get("unusable") or 0),
        "skipped": kinds.get("skipped", []),
        "warnings": kinds.get("warning", []),
        "costs_in_rows": _costs(kinds),
        "memory_parts": sizes(_forecast(kinds).get("memory", {}).get("parts", {})),
        "comparison": comparison,
        "cut_lines": CUT_LINES,
        "charts": [Markup(chart) for chart in comparison.charts] if comparison else [],
        "errors": error_tables(evaluation),
        "recipe": (run.directory / "recipe.yaml").read_text(encoding="utf-8"),
        "provenance": json.dumps(provenance, indent=2, ensure_ascii=False) if provenance else "",
    }


def _source(source: dict[str, Any], data: Event) -> tuple[str, ...]:
    """A source of a mix: its name, examples, how many were drawn, how often, tokens, their part, loss tokens."""
    part = number(source.get("tokens")) / (number(data.get("tokens")) or math.nan)
    often = number(source.get("drawn")) / (number(source.get("available")) or math.nan)
    counts = (count(source.get(name)) for name in ("available", "drawn"))
    tokens, loss_tokens = count(source.get("tokens")), count(source.get("loss_tokens"))
    return str(source.get("name")), *counts, figure(often, "{:.2f}"), tokens, figure(part, "{:.1%}"), loss_tokens


def _last(kinds: dict[str, list[Event]], kind: str) -> Event:
    return kinds.get(kind, [{}])[-1]


def _outcome(kinds: dict[str, list[Event]], comparison: Comparison | None) -> str:
    """The run in a sentence: how far it got, and how the held-out loss changed."""
    start, step, end = (_last(kinds, kind) for kind in ("start", "step", "end"))
    if not start and not step:
        return "This run has not started yet."
    steps, total = step.get("step") or 0, step.get("total_steps", start.get("total_steps"))
    done = f"{count(steps)} of {count(total)} steps"
    if not end:
        outcome = f"Not finished: {done} so far"
    elif end.get("reason") == "done":
        outcome = f"Finished: {count(end.get('step'))} steps in {duration(end.get('seconds'))}"
    else:
        reason = str(end.get("reason", "ended")).capitalize()
        outcome = f"{reason} after {done} in {duration(end.get('seconds'))}"
    held_out = [event.get("loss") for event in kinds.get("evaluation", [])]
    if comparison:
        return f"{outcome}. {comparison.verdict}"
    if len(held_out) > 1:
        unit = start.get("loss_unit", LOSS_UNIT)
        return f"{outcome}; held-out loss from {figure(held_out[0])} to {figure(held_out[-1])} {unit}."
    return f"{outcome}."


def _facts(kinds: dict[str, list[Event]], run: Run, provenance: dict[str, Any]) -> list[tuple[str, str]]:
    start = _last(kinds, "start")
    if not start:
        return []
    return [
        ("base", describe_base(start)),
        ("method", describe_method(start)),
        ("objective", str(start.get("objective", "?"))),
        ("device", f"{start.get('device', '?')}, in {start.get('precision', '?')}"),
        ("started", str(provenance.get("created", "?")).replace("T", " ")),
        ("output", f"{run.output.name}/" if run.output else "none yet"),
    ]


def _with_share(data: Event, name: str) -> str:
    """The count, with its share if it is a part of the rows or of the tokens."""
    total_name = {
        "malformed": "rows",
        "unusable": "rows",
        "loss_tokens": "tokens",
        "held_out_loss_tokens": "held_out_tokens",
    }.get(name)
    text = figure(data[name], "{:,.0f}")
    total = number(data.get(total_name)) if total_name else 0.0
    return text + (figure(100 * number(data[name]) / total, " ({:.3g}%)") if total and data[name] else "")


def _forecast(kinds: dict[str, list[Event]]) -> Event:
    """The first forecast, which covers the full run even if it was resumed."""
    return kinds.get("forecast", [{}])[0]


def _costs(kinds: dict[str, list[Event]]) -> list[tuple[str, ...]]:
    """(what, predicted, measured, off by); the total time only if all steps were taken."""
    predicted, measured = _forecast(kinds), _last(kinds, "plan").get("measured", {})
    if not predicted and not measured:
        return []
    step = _last(kinds, "step")
    rows: list[tuple[str, str, str, Any]] = [
        ("peak memory", "memory", "peak_bytes", size),
        ("time per step", "time", "seconds_per_step", lambda value: figure(value, "{:.3g} s")),
        ("tokens per second", "time", "tokens_per_second", count),
    ]
    if not measured or step.get("step") == step.get("total_steps"):
        rows.append(("time in all", "time", "total_seconds", duration))
    costs = []
    for what, group, name, formatted in rows:
        before, after = predicted.get(group, {}).get(name), measured.get(group, {}).get(name)
        values = ("" if value is None else formatted(value) for value in (before, after))
        costs.append((what, *values, off_by(before, after)))
    return costs


def _read_json(path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return fields
