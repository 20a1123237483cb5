"""A comparison in the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith.report.colors import GOOD, WARNING
from tunesmith.report.compare_page import about_budget
from tunesmith.report.ways import (
    Row,
    about_needs,
    about_quality,
    about_rows,
    headline,
    left_out_lines,
    need_rows,
    note_lines,
    ways_rows,
)


def comparison_text(result: dict[str, Any]) -> Group:
    """The ways, the needs, and the recommendation with its reasons.

    Args:
        result: the content of `compare.json`.

    Returns:
        At eighty columns.
    """
    found = result["recommendation"]
    left_out = "; ".join(left_out_lines(result))
    notes = (about_rows(result), about_quality(result), about_budget(result), left_out, *note_lines(result))
    parts: list[RenderableType] = [_table(ways_rows(result), found["way"], " ".join(filter(None, notes)))]
    if needs := need_rows(result):
        parts.append(_table(needs, found["way"], about_needs(result)))
    else:
        parts.append(Text(about_needs(result)))
    parts.append(Text(headline(result), f"bold {GOOD if found['certain'] else WARNING}"))
    parts += [Text(f"  {line}") for line in found["because"]]
    if found["would_change"]:
        parts.append(Text("What would change it", "bold"))
        parts += [Text(f"  {line}") for line in found["would_change"]]
    return Group(*parts)


def _table(rows: Sequence[Row], marked: str, caption: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for title in rows[0]:
        table.add_column(title, justify="right" if table.columns else "left")
    for row in rows[1:]:
        table.add_row(*row, style="bold" if row[0] == marked else "")
    return table
