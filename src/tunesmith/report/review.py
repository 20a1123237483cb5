"""Rows that somebody reviews, in the terminal."""

from typing import TYPE_CHECKING

from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from tunesmith.report.colors import ALSO, BAD, GOOD, THIRD, WARNING
from tunesmith.report.votes import printable

if TYPE_CHECKING:
    from tunesmith.curation.review import Reviewed, ShownRow


def row_to_review(shown: "ShownRow") -> RenderableType:
    """A row with what checks say of it, and the keys.

    Args:
        shown: the row.
    """
    record = shown.record
    parts: list[RenderableType] = [
        Rule(Text(f"{shown.number:,} of {shown.total:,} · {record.source}", style="dim"), align="left")
    ]
    for title, text, color in (("", record.prompt, "dim"), ("answer", record.answer, ALSO)):
        if text:
            parts.append(Panel(Text(printable(text)), title=title, title_align="left", box=ROUNDED, border_style=color))
    if record.calls:
        called = "\n".join(f"{name}: {text}" for name, text in record.calls)
        parts.append(
            Panel(Text(printable(called)), title="tool call", title_align="left", box=ROUNDED, border_style=ALSO)
        )
    parts += [
        Panel(Text(printable(other)), title="other answer", title_align="left", box=ROUNDED, border_style=THIRD)
        for other in record.others
    ]
    if record.label is not None:
        parts.append(Text.assemble(("label ", "dim"), (printable(record.label), f"bold {ALSO}")))
    parts += [Text(f"! {printable(mark)}", style=WARNING) for mark in shown.marks]
    return Group(*parts, _keys_line(shown))


def _keys_line(shown: "ShownRow") -> Text:
    names = [("k", "keep", GOOD), ("d", "drop", BAD)]
    names += [(str(number), label, ALSO) for number, label in enumerate(shown.labels, 1)]
    names += [("s", "skip", ""), *([("u", "undo", "")] if shown.is_undoable else []), ("q", "quit", "")]
    line = Text()
    for key, name, color in names:
        line.append(f" {key}", f"bold {color}".strip()).append(f" {name}  ", "dim")
    return line


def reviewed_text(reviewed: "Reviewed") -> Text:
    """What was reviewed.

    Args:
        reviewed: of `data_review`.
    """
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in reviewed.verdicts.items()) or "none"
    text = Text(f"{reviewed.reviewer} has verdicts on {reviewed.done:,} of {reviewed.rows:,} rows; now: {kinds}.")
    if reviewed.skipped:
        text.append(f" {reviewed.skipped:,} skipped.")
    if reviewed.malformed:
        text.append(f" {reviewed.malformed:,} malformed rows are not shown.", WARNING)
    return text.append(f" They are in {reviewed.path}: tunesmith data clean --verdicts {reviewed.path}")
