"""`tunesmith init DATA`: a suggested recipe with comments."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.report.colors import WARNING

if TYPE_CHECKING:
    from tunesmith.config.suggestion import DataStatistics
    from tunesmith.data.report import Reason


def init(
    data: Annotated[list[str], typer.Argument(help="Files, directories, globs, or a hub data set.")],
    output: Annotated[Path, typer.Option("--output", help="The recipe to write.")] = Path("recipe.yaml"),
    base: Annotated[str, typer.Option(help="embedded, a model's directory, or a hub name.")] = "embedded",
) -> None:
    """Look at the data and write a recipe, with the reason for each value."""
    from tunesmith.data.files import find
    from tunesmith.data.reading.paired import partner_of

    find(data, Path.cwd())  # a path that is not there is refused before large libraries are imported
    with quick_imports():
        import tunesmith.config.suggestion

    seen = tunesmith.config.suggestion.init(data, output, base)
    console = Console(highlight=False)
    console.print(
        f"{seen.rows:,} rows in the format {seen.format}. Sampled rows have a median of {seen.median_length:,} tokens; "
        f"the longest has {int(seen.lengths.max()):,}."
    )
    for path in map(Path, data):
        if path.suffix == ".txt" and path.is_file() and (both := partner_of(path)) is not None:
            line = f"{path} has as many lines as another file. If line n of both belong together, name '{both}'."
            console.print(line, style=WARNING, markup=False, soft_wrap=True)
    for line in _left_out(seen):
        console.print(line, style=WARNING, markup=False, soft_wrap=True)
    console.print(f"Wrote {output}. Next: tunesmith train {output}", soft_wrap=True)
    gate = output.with_name("gate.yaml")
    console.print(f"Limits for its result are in {gate}: tunesmith evaluate RUN --gate {gate}", soft_wrap=True)


def _left_out(seen: "DataStatistics") -> Iterator[str]:
    """Lines about the rows that a run would not train on: how many, why, the first with each reason, what to do."""
    if seen.malformed:
        yield (
            f"{seen.malformed:,} of {seen.rows:,} rows are malformed. Fix them: a run leaves them out and counts them, "
            "but refuses the data if they are a larger share than data.max_malformed."
        )
        yield from _listed(seen.malformed_reasons)
    if seen.unusable:
        yield (
            f"{seen.unusable:,} of the {'first ' if seen.sampled < seen.rows else ''}{seen.sampled:,} rows cannot be "
            "trained on. Fix them: data.skip_unusable: true in the recipe leaves them out and counts them."
        )
        yield from _listed(seen.unusable_reasons)


def _listed(reasons: "Sequence[Reason]") -> Iterator[str]:
    from tunesmith.data.report import SHOWN

    yield from (f"  {reason}" for reason in reasons[:SHOWN])
    if len(reasons) > SHOWN:
        more = sum(reason.rows for reason in reasons[SHOWN:])
        yield f"  and {more:,} with {len(reasons) - SHOWN:,} other reasons"
