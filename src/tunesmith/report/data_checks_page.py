"""What the checks of the data found, as one HTML page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tunesmith.checks.inputs import Input
from tunesmith.checks.language import in_words
from tunesmith.checks.record import Record
from tunesmith.checks.result import CheckResult, DataChecks, Mark
from tunesmith.checks.rows_again import Read, read_again
from tunesmith.checks.table import Table
from tunesmith.checks.worst import WorstRows
from tunesmith.data.example import Malformed, Source
from tunesmith.report.charts import bar_chart
from tunesmith.report.data_checks import ORDER, Asked, next_commands
from tunesmith.report.html import fill_page
from tunesmith.report.shown_text import beginning

PAGE = "data_checks.html.jinja"

SHOWN = 5
"""Rows of each check."""

CLUSTERS, MEMBERS = 10, 12
"""Groups of duplicates, the largest first, and rows of each that are named."""

CHARACTERS = 700
"""Of a text that are shown; how many more there are is said."""

LINE = 160
"""Characters of a row before or behind a marked one."""

BARS = 20
"""Bars of a figure; what is left is summed up."""

DUPLICATES = ("exact_duplicates", "near_duplicates")


@dataclass(frozen=True, slots=True)
class ShownText:
    """A text of a row: `text` is its beginning, without personal data and secrets; `more` characters are left out."""

    name: str
    text: str
    more: int


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A marked row in its place: the rows before and behind it, in a line each, and the rows that it is marked for."""

    source: str
    detail: str
    texts: tuple[ShownText, ...]
    before: str
    behind: str
    others: tuple[tuple[str, tuple[ShownText, ...]], ...]


def write_checks_page(
    path: Path, found: DataChecks, files: Sequence[Input], others: Sequence[Input], asked: Asked
) -> Path:
    """Write a self-contained page: figures of the rows, each check with its worst rows in their place, what to do next.

    Personal data and secrets are replaced by pseudonyms in all texts that are shown, so that the page can be passed on.

    Args:
        path: of the page.
        found: by the checks.
        files: that were checked.
        others: that they were compared with.
        asked: what was asked for.

    Returns:
        The path.

    Raises:
        UserError: it cannot be written.
    """
    marked = sorted((each for each in found.results if each.count), key=lambda each: ORDER.index(each.severity))
    table = Table.read(found.directory / "rows")
    clusters = _clusters(found)
    rows_by_badness = WorstRows(found)
    marks = {
        result.name: result.worst(SHOWN, rows_by_badness.badness) for result in marked if result.name not in DUPLICATES
    }
    rows = read_again([*files, *others], _wanted(marks, clusters))
    shown = {
        "name": ", ".join(found.files[:3]) + (f" and {len(found.files) - 3:,} more" if len(found.files) > 3 else ""),
        "outcome": _outcome(found, marked),
        "commands": next_commands(bool(marked), asked),
        "marked": [(result, result.count / max(1, found.rows)) for result in marked],
        "clean": [result for result in found.results if not result.count and not result.about],
        "said": [result for result in found.results if not result.count and result.about],
        "charts": [Markup(chart) for chart in _lengths(table)],
        "figures": _figures(found, table),
        "associations": [each["text"] for each in found.summary.get("associations", [])],
        "clusters": [_cluster(rows, first, members, count) for first, (members, count) in clusters],
        "clustered": sum(result.count for result in marked if result.name in DUPLICATES),
        "checks": [
            (result, [_row(rows, mark) for mark in marks[result.name]]) for result in marked if result.name in marks
        ],
    }
    return fill_page(PAGE, path.parent, shown, path.name)


def _outcome(found: DataChecks, marked: Sequence[CheckResult]) -> str:
    rows = f"{found.rows:,} rows in {len(found.files):,} file{'s' if len(found.files) != 1 else ''}."
    if not marked:
        count = len(found.results)
        return f"{rows} Nothing was found by {count} check{'s' if count != 1 else ''}."
    counts = Counter(str(result.severity) for result in marked)
    parts = [f"{counts[name]} of severity {name}" for name in ORDER if counts[name]]
    return f"{rows} {len(marked)} of {len(found.results)} checks marked rows: {', '.join(parts)}."


def _lengths(table: Table) -> list[str]:
    """Histograms of the texts' lengths, in bins that double."""
    charts = []
    for name, title in (("prompt_length", "Lengths of prompts"), ("answer_length", "Lengths of answers and raw texts")):
        lengths = table.column(name)
        lengths = lengths[lengths > 0]
        if len(lengths):
            bins = np.bincount(np.ceil(np.log2(lengths)).astype(np.int64))
            first = int(np.flatnonzero(bins)[0])
            bars = [(f"≤ {1 << (first + index):,}", float(count)) for index, count in enumerate(bins[first:])]
            charts.append(bar_chart(title, "characters", "rows", bars))
    return charts


def _figures(found: DataChecks, table: Table) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """Titles and bars (name, rows, share of the longest)."""
    summary = found.summary
    languages = {in_words(name): count for name, count in summary.get("languages", {}).items()}
    if known := sum(languages.values()):
        languages["not known, or too short"] = table.records - known
    groups = {
        f"{group} ({dimension})": count
        for dimension, counts in summary.get("groups", {}).items()
        for group, count in counts.items()
    }
    figures: list[tuple[str, Mapping[str, int]]] = [
        ("Rows by file", table.rows_by_file if len(found.files) > 1 else {}),
        ("Rows by label", summary.get("labels", {})),
        ("Rows by language", languages),
        ("Rows that name a group of people", groups),
    ]
    return [(title, _bars(counts)) for title, counts in figures if counts]


def _bars(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    bars = [(name, count, count / ordered[0][1]) for name, count in ordered[:BARS]]
    left = ordered[BARS:]
    return [*bars, (f"{len(left):,} others together", sum(count for _, count in left), 0.0)] if left else bars


Clusters = list[tuple[Source, tuple[list[Mark], int]]]
"""By the row that others repeat: some of them, and how many there are."""


def _clusters(found: DataChecks) -> Clusters:
    members: dict[Source, list[Mark]] = {}
    counts: Counter[Source] = Counter()
    for name in DUPLICATES:
        if name in found:
            for mark in found[name].marks:
                for first in mark.others[:1]:
                    counts[first] += 1
                    if counts[first] <= MEMBERS:
                        members.setdefault(first, []).append(mark)
    return [(first, (members[first], count)) for first, count in counts.most_common(CLUSTERS)]


def _wanted(marks: Mapping[str, Sequence[Mark]], clusters: Clusters) -> set[Source]:
    wanted = {first for first, _ in clusters}
    for mark in (mark for each in marks.values() for mark in each):
        file, row = mark.source.file, mark.source.row
        wanted |= {mark.source, Source(file, row - 1), Source(file, row + 1), *mark.others[:2]}
    return wanted


def _cluster(rows: Mapping[Source, Read], first: Source, members: Sequence[Mark], count: int) -> dict[str, Any]:
    listed = ", ".join(str(mark.source) for mark in members)
    more = f" and {count - len(members):,} more" if count > len(members) else ""
    return {"source": str(first), "count": count, "texts": _texts(rows.get(first)), "members": listed + more}


def _row(rows: Mapping[Source, Read], mark: Mark) -> ShownRow:
    file, row = mark.source.file, mark.source.row
    others = tuple((str(other), _texts(rows.get(other))) for other in islice(mark.others, 2))
    before, behind = (_line(rows.get(Source(file, number))) for number in (row - 1, row + 1))
    return ShownRow(
        str(mark.source),
        beginning(mark.detail, len(mark.detail)),
        _texts(rows.get(mark.source)),
        before,
        behind,
        others,
    )


def _texts(read: Read | None) -> tuple[ShownText, ...]:
    if not isinstance(read, Record):
        return ()
    texts = [*read.places(), *([("the label", read.label)] if read.label is not None else [])]
    return tuple(
        ShownText(name.removeprefix("the "), beginning(text, CHARACTERS), max(0, len(text) - CHARACTERS))
        for name, text in texts
    )


def _line(read: Read | None) -> str:
    """A row in a line; empty if there is none."""
    if isinstance(read, Malformed):
        return f"malformed: {read.reason}"
    if read is None:
        return ""
    texts = (" ".join(beginning(text, LINE).split()) for text in (*read.texts[:2], read.label) if text)
    return " → ".join(texts)[:LINE]
