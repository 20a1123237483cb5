"""What the checks of the data found, in the terminal."""

from rich.console import Console
from rich.markup import escape

from tunesmith.checks.result import CheckResult, DataChecks
from tunesmith.report.colors import BAD, WARNING

STYLES = {"error": BAD, "warning": WARNING, "note": "cyan"}
"""By severity."""


def print_checks(console: Console, found: DataChecks, most: int) -> None:
    """Print each check that marked rows, with its first rows and what to do; then those that marked none.

    Args:
        console: to print on.
        found: by the checks.
        most: rows to list of each check.
    """
    files = f"{len(found.files):,} files" if len(found.files) > 1 else found.files[0]
    console.print(f"[bold]{found.rows:,} rows[/] in {escape(files)}", soft_wrap=True)
    for result in found.results:
        if result.count:
            _print_check(console, result, most)
    clean = [result.name for result in found.results if not result.count]
    if clean:
        console.print(f"\n[bold]Nothing found[/] by {', '.join(clean)}.")


def _print_check(console: Console, result: CheckResult, most: int) -> None:
    style = STYLES[result.severity]
    console.print(
        f"\n[bold {style}]{result.title}[/]  {result.count:,} {'rows' if result.count > 1 else 'row'}  "
        f"[{style}]{result.severity}[/]  [dim]{result.name}[/]"
    )
    for mark in result.first(most):
        console.print(f"  {mark.source}: {mark.detail}", markup=False, soft_wrap=True)
    if result.count > most:
        console.print(f"  … and {result.count - most:,} more", style="dim")
    console.print(f"  {result.advice}", style="italic", markup=False)
