"""A comparison as one HTML page: the recommendation, quality against cost, needs, costs, and rows where ways differ."""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tunesmith.report.comparison import CUT_LINES
from tunesmith.report.cost_chart import cost_chart
from tunesmith.report.figures import SHARE
from tunesmith.report.formatting import duration
from tunesmith.report.html import fill_page
from tunesmith.report.ways import (
    NEEDS,
    about_needs,
    about_quality,
    about_rows,
    break_even_lines,
    cost_rows,
    headline,
    left_out_lines,
    need_rows,
    note_lines,
    other_figures,
    points,
    ways_rows,
)


def write_comparison_page(directory: Path) -> Path:
    """Write `report.html` beside a `compare.json`.

    Args:
        directory: of both.

    Returns:
        The path of the page.
    """
    result = json.loads((directory / "compare.json").read_text(encoding="utf-8"))
    found = result["recommendation"]
    shown = {
        "name": directory.resolve().name,
        "way": found["way"],
        "headline": headline(result),
        "because": found["because"],
        "would_change": found["would_change"],
        "about": about_rows(result),
        "differences": about_quality(result),
        "ways": ways_rows(result),
        "charts": [Markup(chart) for chart in charts(result)],
        "left_out": left_out_lines(result),
        "budget": about_budget(result),
        "notes": note_lines(result),
        "about_needs": about_needs(result),
        "needs": need_rows(result),
        "costs": cost_rows(result),
        "break_even": break_even_lines(result),
        "others": other_figures(result),
        "samples": result["samples"],
        "cut_lines": CUT_LINES,
    }
    return fill_page("compare.html.jinja", directory, shown)


def charts(result: dict[str, Any]) -> list[str]:
    """Quality against the cost of a thousand requests: over all rows, and among the rows of each need.

    Args:
        result: the content of `compare.json`.

    Returns:
        SVG with captions.
    """
    about = result["figures"][result["metric"]]
    is_share = about["unit"] == SHARE
    unit = "a thousand requests" if result["cost_unit"] == "money" else "seconds for a thousand requests"
    quality = f"{about['title']}, %" if is_share else about["title"]
    way = result["recommendation"]["way"]
    dots = points(result)
    found = [cost_chart("Quality against cost, all rows", unit, quality, dots, way)]
    scale = 100.0 if is_share else 1.0
    for need, each in result["needs"].items() if len(result["needs"]) > 1 else ():
        own = [
            (name, cost, scale * value["value"], (scale * value["interval"][0], scale * value["interval"][1]))
            for name, cost, *_ in dots
            if (value := each["ways"].get(name)) is not None
        ]
        title = f"Rows that need {NEEDS[need]} ({each['rows']:,})"
        found.append(cost_chart(title, unit, quality, own, each["way"] or ""))
    return found


def about_budget(result: dict[str, Any]) -> str:
    """What the budget allowed, in a sentence; empty without one."""
    budget = result["budget"]
    if budget is None:
        return ""
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in budget["predicted"].items())
    return f"The budget of {duration(budget['seconds'])} allowed {result['rows']:,} rows; predicted: {parts}."
