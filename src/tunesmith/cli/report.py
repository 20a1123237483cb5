"""`tunesmith report RUN`: a run as one HTML page."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    run: Annotated[Path, typer.Argument(help="A run; it need not be finished.")],
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write a run's report.html: outcome, curves, base and tuned model side by side, data, cost."""
    from tunesmith.report.html import write_report

    console = Console(highlight=False)
    page = write_report(run)
    console.print(f"Wrote {page}.", markup=False, soft_wrap=True)
    if open_ and not webbrowser.open(page.as_uri()):
        console.print("No browser could be opened here.", markup=False)
