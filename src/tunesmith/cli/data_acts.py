"""`tunesmith data split`, `balance`, `sample` and `diff`: which rows are in which file."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError

Sources = Annotated[list[str], typer.Argument(help="Files, directories or globs; or one recipe, whose rows are read.")]
Output = Annotated[Path, typer.Option(help="The file to write, JSON lines; it must not exist.")]
Seed = Annotated[int, typer.Option(help="Of what is random.")]


def split(
    sources: Sources,
    output: Annotated[Path, typer.Option(help="The directory to write; it must not exist.")],
    held_out: Annotated[float, typer.Option(help="The share of the rows in held_out.jsonl.")] = 0.1,
    test: Annotated[float, typer.Option(help="The share in test.jsonl.")] = 0.0,
    stratify: Annotated[
        str | None, typer.Option(help="label, or a column: each value has these shares on each side.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="A column whose equal values stay on one side.")] = None,
    time: Annotated[str | None, typer.Option(help="A column of dates or numbers: the latest are held out.")] = None,
    near_duplicates: Annotated[bool, typer.Option(help="Keep rows together whose inputs are nearly the same.")] = True,
    seed: Seed = 0,
) -> None:
    """Write train.jsonl and held_out.jsonl, so that no input is in both, nor nearly the same one."""
    with quick_imports():
        from tunesmith.curation.split import data_split
        from tunesmith.report.curation import split_parts
        from tunesmith.report.progress import Progress

    console = Console(highlight=False)
    with Progress(console) as progress:
        found = data_split(
            sources, output, held_out=held_out, test=test, stratify=stratify, group=group, time=time,
            near_duplicates=near_duplicates, seed=seed, subscribers=[progress],
        )  # fmt: skip
    for part in split_parts(found):
        console.print(part, soft_wrap=True)


def balance(
    sources: Sources,
    output: Output,
    by: Annotated[str, typer.Option(help="label, or a column.")] = "label",
    to: Annotated[str, typer.Option(help="Rows of each class: a number, smallest, median or largest.")] = "median",
    most_copies: Annotated[int, typer.Option(help="How often a row is written, at most; 1 repeats none.", min=1)] = 4,
    seed: Seed = 0,
) -> None:
    """Bring classes to the same number of rows: large ones lose some, small ones repeat theirs."""
    with quick_imports():
        from tunesmith.curation.balance import data_balance
        from tunesmith.report.curation import balance_parts
        from tunesmith.report.progress import Progress

    size: int | str = int(to) if to.isdecimal() else to
    console = Console(highlight=False)
    with Progress(console) as progress:
        found = data_balance(
            sources, output, by=by, to=size, most_copies=most_copies, seed=seed, subscribers=[progress]  # type: ignore[arg-type]
        )  # fmt: skip
    for part in balance_parts(found):
        console.print(part, soft_wrap=True)


def sample(
    rows: Annotated[int, typer.Argument(help="How many rows.", min=1)],
    sources: Sources,
    output: Output,
    stratify: Annotated[str | None, typer.Option(help="label, or a column: each value has its share.")] = None,
    worst: Annotated[
        bool, typer.Option("--worst", help="Not random ones: those that most checks mark, the most severe first.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Draw rows at random, or take the worst ones, for example to review them."""
    if worst and stratify is not None:
        raise UserError("--worst takes the worst rows of all, so it has no use for --stratify. Leave one of them out.")
    with quick_imports():
        from tunesmith.curation.sample import data_sample
        from tunesmith.curation.worst import data_worst
        from tunesmith.report.curation import sample_parts, worst_parts
        from tunesmith.report.progress import Progress

    console = Console(highlight=False)
    with Progress(console) as progress:
        if worst:
            parts = worst_parts(data_worst(sources, rows, output, subscribers=[progress]))
        else:
            found = data_sample(sources, rows, output, stratify=stratify, seed=seed, subscribers=[progress])
            parts = sample_parts(found)
    for part in parts:
        console.print(part, soft_wrap=True)


def select(
    rows: Annotated[int, typer.Argument(help="How many rows.", min=1)],
    sources: Sources,
    output: Output,
    by: Annotated[str, typer.Option(help="diversity, difficulty, quality or random.")] = "diversity",
    model: Annotated[
        str | None, typer.Option(help="Diversity: an encoder; default: shared words. Difficulty: a language model.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Choose the most useful rows. Compare them with as many random ones before you trust them."""
    with quick_imports():
        from tunesmith.curation.select import data_select
        from tunesmith.report.curation import selection_parts
        from tunesmith.report.progress import Progress

    console = Console(highlight=False)
    with Progress(console) as progress:
        found = data_select(
            sources, rows, output, by=by, model=model, seed=seed, subscribers=[progress]  # type: ignore[arg-type]
        )  # fmt: skip
    for part in selection_parts(found):
        console.print(part, soft_wrap=True)


def augment(
    sources: Sources,
    output: Output,
    template: Annotated[
        list[str] | None, typer.Option(help="A text with {prompt} in it, around the prompts of rows.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model that puts prompts in other words: a run, a name, http://HOST/v1#MODEL.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Have the model translate into it and back instead.")] = None,
    back_to: Annotated[str, typer.Option(help="The language of the rows, with --language.")] = "English",
    share: Annotated[float, typer.Option(help="The most that synthetic rows are of all rows.")] = 0.2,
    seed: Seed = 0,
) -> None:
    """Add synthetic rows: the same answers to prompts in other words. Each is marked, with its parent, and checked."""
    with quick_imports():
        from tunesmith.curation.augment import data_augment
        from tunesmith.report.curation import augmented_parts
        from tunesmith.report.progress import Progress

    console = Console(highlight=False)
    with Progress(console) as progress:
        found = data_augment(
            sources, output, templates=template or [], model=model, language=language, back_to=back_to, share=share,
            seed=seed, subscribers=[progress],
        )  # fmt: skip
    for part in augmented_parts(found):
        console.print(part, soft_wrap=True)


def diff(
    a: Annotated[str, typer.Argument(help="The rows before: a file, a directory, a glob or a recipe.")],
    b: Annotated[str, typer.Argument(help="The rows after.")],
    key: Annotated[str | None, typer.Option(help="A column that identifies a row; default: its prompt.")] = None,
    output: Annotated[Path | None, typer.Option(help="A file for the rows that differ; it must not exist.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two versions of a data set: rows added, removed and changed, and how labels and lengths shift."""
    if a == b:
        raise UserError(f"{a} is compared with itself. Name two versions.")
    with quick_imports():
        from tunesmith.curation.diff import data_diff
        from tunesmith.report.curation import diff_parts
        from tunesmith.report.progress import Progress

    console = Console(highlight=False, stderr=as_json)
    with Progress(console) as progress:
        found = data_diff(a, b, output, key=key, subscribers=[progress])
    if as_json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
        return
    for part in diff_parts(found):
        console.print(part, soft_wrap=True)
