"""`tunesmith compare`: prompting, retrieval and fine-tuning side by side on your own rows."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports


def compare(
    comparison: Annotated[Path, typer.Argument(help="compare.yaml: the base, the rows, and what else there is.")],
    output: Annotated[
        Path | None, typer.Option(help="A directory for runs, index and results; default: beside the file.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="A time, such as 20min: fewer rows, and if needed fewer ways.")
    ] = None,
    concurrent: Annotated[
        int, typer.Option(help="The most answers at the same time. Answers do not depend on it.", min=1)
    ] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the content of compare.json.")] = False,
) -> None:
    """Compare prompts, examples, retrieval, fine-tuning and their combinations on the same held-out rows: quality with
    intervals, latency, cost, and which to take."""
    with quick_imports():
        import tunesmith.comparing.compare as comparison_module
        from tunesmith.report.compare_page import write_comparison_page
        from tunesmith.report.compare_table import comparison_text
        from tunesmith.report.progress import Progress
        from tunesmith.run import jsonable

    console = Console(highlight=False)
    with Progress(Console(stderr=True, highlight=False) if as_json else console) as progress:
        result = comparison_module.compare(comparison, output, [progress], concurrent, budget)
    page = write_comparison_page(Path(result["output"]))
    if as_json:
        print(json.dumps(jsonable(result), indent=2, ensure_ascii=False))
        return
    console.print(comparison_text(result))
    console.print(f"Written to {page.with_name(comparison_module.FILE)} and {page}", soft_wrap=True)
