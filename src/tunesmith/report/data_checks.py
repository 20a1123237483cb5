"""What the checks of the data found, in the terminal."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tunesmith.checks.inputs import Input
from tunesmith.checks.record import Record
from tunesmith.checks.result import CheckResult, DataChecks, Mark
from tunesmith.checks.rows_again import read_again
from tunesmith.checks.subject import OF_RECIPES
from tunesmith.data.example import Source
from tunesmith.report.colors import ALSO, BAD, GOOD, WARNING
from tunesmith.report.shown_text import beginning

STYLES = {"error": f"bold {BAD}", "warning": f"bold {WARNING}", "note": f"bold {ALSO}"}
"""By severity."""

ORDER = tuple(STYLES)
"""The most severe first."""

NEEDS = {
    "leakage": "needs --against FILE, or a recipe that holds rows out",
    **dict.fromkeys(OF_RECIPES, "needs --base NAME, or a recipe"),
    **dict.fromkeys(("label_imbalance", "label_neighbors", "suspicious_labels"), "needs rows with labels"),
}
"""Why a check that was named did not run."""

OUTPUT = 60
"""Characters that are shown of what a row teaches."""

ROW_COLUMN = 12
"""Characters of the column with the rows' numbers, if all rows are of one file."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, to name it in further commands.

    Attributes:
        paths: what was checked, as the user named it.
        against: what it was compared with.
        options: further options of the check.
        only: names of checks; empty for all.
    """

    paths: Sequence[str]
    against: Sequence[str] = ()
    options: Sequence[str] = ()
    only: Sequence[str] = ()


def print_checks(console: Console, found: DataChecks, most: int, asked: Asked, files: Sequence[Input]) -> None:
    """Print what was read, a table of the checks that marked rows, the first rows of each, and what to run next.

    Args:
        console: to print on.
        found: by the checks.
        most: rows to list of each check.
        asked: what was asked for.
        files: that were checked, and those that they were compared with.
    """
    marked = sorted((result for result in found.results if result.count), key=lambda each: ORDER.index(each.severity))
    name = f"{len(found.files):,} files" if len(found.files) > 1 else found.files[0]
    rows = f"{found.rows:,} row{'s' if found.rows != 1 else ''}"
    console.print(f"[bold]{rows}[/] in {escape(name)}{_described(found)}", soft_wrap=True)
    if marked:
        console.print(_summary(marked, found.rows))
    short = _shortener(found.files)
    for result in marked if most else ():
        pairs = _outputs(result.first(most), files) if result.name == "contradictions" else {}
        _print_check(console, result, most, short, pairs)
    for result in found.results:
        if result.about and not result.count:
            console.print(f"\n[bold]{result.title}[/]: {escape(result.about)}")
    clean = [result.name for result in found.results if not result.count and not result.about]
    if clean:
        console.print(f"\n[bold {GOOD}]Nothing found[/] by {', '.join(clean)}.")
    if lacking := not_run(found, asked.only):
        console.print(f"\n[bold {WARNING}]Not run[/]: {'; '.join(lacking)}.")
    console.print("\n[bold]Next[/]")
    for command in next_commands(bool(marked), asked):
        console.print(f"  {command}", markup=False, soft_wrap=True)


def list_checks(console: Console, checks: Sequence[tuple[str, str, str]]) -> None:
    """Print the names of all checks.

    Args:
        console: to print on.
        checks: (name, severity, title) of each.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("name", "severity", "marks"):
        table.add_column(column)
    for name, severity, title in checks:
        table.add_row(name, Text(severity, STYLES[severity]), title)
    console.print(table)


def _described(found: DataChecks) -> str:
    formats = sorted(set(filter(None, found.summary["formats"].values())))
    parts = [", ".join(formats)] if formats else []
    if found.summary["loss_tokens"]:
        share = found.summary["loss_tokens"] / found.summary["tokens"]
        parts.append(f"{found.summary['tokens']:,} tokens, {share:.0%} with loss")
    cached = ", known from before" if found.cached else ""
    return (f" ({'; '.join(parts)})" if parts else "") + cached


def _summary(marked: Sequence[CheckResult], rows: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(justify="right")
    for _ in range(4):
        table.add_column()
    for result in marked:
        share = f"{result.count / rows:.1%}" if rows else ""
        severity = Text(result.severity, STYLES[result.severity])
        table.add_row(f"{result.count:,}", share, severity, result.title, Text(result.name, "dim"))
    return table


def _outputs(marks: Sequence[Mark], files: Sequence[Input]) -> dict[Source, str]:
    """What two rows that contradict each other teach, by the row that is marked; nothing of files that changed."""
    rows = read_again(files, {source for mark in marks for source in (mark.source, *mark.others[:1])})
    found = {}
    for mark in marks:
        both = [rows.get(source) for source in (mark.source, *mark.others[:1])]
        texts = [each.label or each.learned for each in both if isinstance(each, Record)]
        if len(texts) == 2:
            found[mark.source] = "\n≠ ".join(" ".join(beginning(text, OUTPUT).split()) for text in texts)
    return found


def _print_check(
    console: Console, result: CheckResult, most: int, short: Callable[[str], str], outputs: Mapping[Source, str]
) -> None:
    console.print(Text(f"\n{result.title}", STYLES[result.severity]))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True, justify="right", min_width=ROW_COLUMN)
    table.add_column(overflow="fold")
    for mark in result.first(most):
        table.add_row(Text(short(str(mark.source)), "bold"), Text(short(mark.detail)))
        if mark.source in outputs:
            table.add_row("", Text(outputs[mark.source], "dim"))
    if result.count > most:
        table.add_row("", Text(f"and {result.count - most:,} more", "dim"))
    console.print(table)
    for text in filter(None, (result.about, f"→ {result.advice}")):
        console.print(Padding(Text(text), (0, 0, 0, 2)))


def _shortener(files: Sequence[str]) -> Callable[[str], str]:
    """Leaves the file's name out where there is only one."""
    if len(files) > 1:
        return lambda text: text
    return lambda text: text.replace(f"{files[0]} row ", "row ")


def not_run(found: DataChecks, only: Sequence[str]) -> list[str]:
    """Checks that were named and did not run, each with what it needs.

    Args:
        found: by the checks.
        only: the names.
    """
    return [f"{name} ({NEEDS.get(name, 'no row has what it looks at')})" for name in only if name not in found]


def next_commands(marked: bool, asked: Asked) -> list[str]:
    """What to run next.

    Args:
        marked: whether a check marked rows.
        asked: what was asked for.
    """
    paths = shlex.join(asked.paths)
    against = "".join(f" --against {shlex.quote(path)}" for path in asked.against)
    options = "".join(f" {option}" for option in asked.options)
    commands = []
    if marked:
        commands = [
            f"tunesmith data check {paths}{against}{options} --rows 20",
            f"tunesmith data clean {paths}{against} --output clean.jsonl",
        ]
    return [*commands, f"tunesmith data show {shlex.quote(asked.paths[0])}"]
