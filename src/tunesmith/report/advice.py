"""The advice of `tunesmith advise` in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tunesmith.report.colors import GOOD, WARNING
from tunesmith.report.formatting import duration, size

PRIOR = "Prior figures, from published experiments. They are not measured on your data."

Row = tuple[str, ...]


def advice_text(advice: Mapping[str, Any]) -> Group:
    """The ways, the advice with its reasons, and the next step.

    Args:
        advice: what `tunesmith.advise` returns.

    Returns:
        At eighty columns.
    """
    found, style = headline(advice), f"bold {GOOD if advice['certain'] else WARNING}"
    parts: list[RenderableType] = [_table(ways_rows(advice), advice["way"] or "", about_costs(advice))]
    parts.append(Text(found, style))
    parts += _section("Why", advice["because"])
    if advice["findings"]:
        parts += _section("Also found", [f"{each['text']} ({each['source']})" for each in advice["findings"]])
    parts += _section("What would change it", advice["would_change"])
    parts += _section("Compare these ways", [", ".join(advice["compare"]), about_rows(advice)])
    return Group(*parts)


def headline(advice: Mapping[str, Any]) -> str:
    """The advice in a line.

    Args:
        advice: what `tunesmith.advise` returns.
    """
    if advice["way"] is None:
        return "No way is possible within these limits."
    if advice["certain"]:
        return f"Published figures are for {advice['way']}. Compare it on your rows."
    return f"Published figures cannot tell: compare the ways. Start with {advice['way']}."


def about_rows(advice: Mapping[str, Any]) -> str:
    """How many rows the comparison needs.

    Args:
        advice: what `tunesmith.advise` returns.
    """
    held_out, label, rows = advice["held_out_rows"], advice["rows_to_label"], advice["answers"]["rows"]
    points = 100 * advice["detectable"]
    fewer = f" With {rows:,} rows in all, it would show {points:.0f} points." if rows and points <= 100 else ""
    return (
        f"Label about {label:,} rows and hold {held_out:,} of them out: so many show a difference of 10 points from "
        f"the plain model (with 80 %, if two ways differ on 30 % of the rows).{fewer}"
    )


def about_costs(advice: Mapping[str, Any]) -> str:
    """Where the figures of the table come from.

    Args:
        advice: what `tunesmith.advise` returns.
    """
    gains = f"{PRIOR} Points over the plain model, lowest to highest."
    plan, base = advice["plan"], advice["answers"]["base"]
    if plan is None or advice["unplanned"]:
        return f"{gains} No costs: {advice['unplanned']}"
    hosted = " Hosted: a thousand requests at your prices." if _is_hosted(advice) else ""
    return (
        f"{gains} Times and memory: predicted for {base} on {plan['device']}, for questions and answers of 100 tokens; "
        f"a run with LoRA needs {size(plan['training_bytes'])} of {size(plan['available_bytes'])}.{hosted}"
    )


def ways_rows(advice: Mapping[str, Any]) -> list[Row]:
    """The possible ways, with what they gained and what they cost.

    Args:
        advice: what `tunesmith.advise` returns.

    Returns:
        The headings, then a row for each way.
    """
    hosted = _is_hosted(advice)
    titles = ("way", "prior\ngain", "prompt\ntokens", "an\nanswer", "at first", "memory")
    headings = (*titles, "hosted") if hosted else titles
    rows = []
    for name, way in advice["ways"].items():
        cells = [name, _gain(name, way["gain"], way["papers"]), *_cost_cells(way["cost"])]
        if hosted:
            cells.append("–" if way["hosted_per_thousand"] is None else f"{way['hosted_per_thousand']:.2f}")
        rows.append(tuple(cells))
    return [headings, *rows]


def _cost_cells(cost: Mapping[str, Any] | None) -> tuple[str, ...]:
    if cost is None:
        return ("–",) * 4
    once = duration(cost["seconds_once"])
    return f"{cost['tokens_in']:,.0f}", duration(cost["seconds"]), once, size(cost["memory_bytes"])


def _gain(name: str, gain: Sequence[float] | None, papers: Sequence[str]) -> str:
    if name == "plain":
        return "0"
    if gain is None:
        return "see why" if papers else "no figure"
    low, high = (f"{value:+.1f}".replace("-", "−") for value in gain)
    return low if low == high else f"{low} to {high}"


def _is_hosted(advice: Mapping[str, Any]) -> bool:
    return any(way["hosted_per_thousand"] is not None for way in advice["ways"].values())


def _section(title: str, lines: Sequence[str]) -> list[RenderableType]:
    return [Text(title, "bold"), *(Padding(Text(line), (0, 0, 0, 2)) for line in lines)]


def _table(rows: Sequence[Row], marked: str, caption: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for title in rows[0]:
        table.add_column(title, justify="right" if table.columns else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row, style="bold" if row[0] == marked else "")
    return table
