"""`tunesmith demo`: from this Python's own documentation to a model that describes functions it has never seen."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from tunesmith.cli.quick import quick_imports


def demo(
    directory: Annotated[
        Path | None, typer.Option(help="Where to put data and run; default: a new one in runs/.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Replace a field of the demo's recipe.")] = None,
) -> None:
    """The whole way on real data in three minutes: rows, plan, training, evaluation, answers side by side."""
    with quick_imports():
        from tunesmith.demo.recipe import demo_recipe, new_directory
        from tunesmith.evaluation.compare import evaluate
        from tunesmith.report.html import write_report
        from tunesmith.report.progress import Progress
        from tunesmith.report.spinner import Spinner
        from tunesmith.report.table import evaluation_table, samples_table
        from tunesmith.training.stages import train

    console = Console(highlight=False)
    place = new_directory(directory)
    _head(console, "1. The data", "Questions and answers from the documentation of this Python.")
    recipe, counts, example = demo_recipe(place)
    _show_data(console, counts, example)
    _head(console, "2. Training", f"LoRA on the embedded base. The recipe: {_short(place / 'recipe.yaml')}")
    with Progress(console) as progress:
        run = train(recipe, place / "run", set_ or [], [progress])
    if not run.finished:
        console.print(f"Interrupted; everything is saved. Go on with: tunesmith train --resume {_short(run.directory)}")
        raise typer.Exit(130)
    _head(console, "3. Did it work?", "On modules that training had nothing of. The first word is the kind of thing.")
    with Spinner(console) as waiting:
        result = evaluate(run.directory, 200, max_new_tokens=40, repetition_penalty=1.2, subscribers=[waiting])
    report = write_report(run.directory)
    console.print(evaluation_table(result))
    _head(
        console,
        "4. Five answers, side by side",
        "Evenly spaced among the held-out questions, not chosen. Greedy, repetition penalty 1.2.",
    )
    console.print(samples_table(result["samples"]))
    _head(console, "5. What next", "")
    _show_next(console, run.directory, report, result)


def _head(console: Console, title: str, line: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left")
    if line:
        console.print(line, style="dim", markup=False, soft_wrap=True)


def _show_data(console: Console, counts: dict[str, int], example: dict[str, str]) -> None:
    console.print(
        f"{counts['train']:,} pairs from {counts['train_modules']:,} modules to learn from; "
        f"{counts['held_out']:,} pairs from {counts['held_out_modules']:,} other modules kept for the test."
    )
    left_out = sum(count for name, count in counts.items() if name.startswith("left out"))
    console.print(
        f"Left out: {left_out:,} docstrings without a plain first sentence, {counts['held_out_removed']:,} test pairs "
        "whose answer also stands in training."
    )
    console.print(
        Padding(Text(f"question  {example['question']}\nanswer    {example['answer']}", style="cyan"), (1, 2, 0, 2))
    )


def _show_next(console: Console, run: Path, report: Path, result: dict[str, Any]) -> None:
    question = result["samples"][0]["prompt"]
    lines = (
        ("the adapter, in PEFT's format", _short(run / "adapter")),
        ("the report, with its curves", _short(report)),
        ("ask it yourself", f"tunesmith generate {_short(run)} {shlex.quote(question)} --repetition-penalty 1.2"),
        ("talk with it", f"tunesmith chat {_short(run)}"),
        ("make one model of it", f"tunesmith merge {_short(run)} --output my-model"),
        ("your own rows", "tunesmith init rows.jsonl && tunesmith train recipe.yaml"),
    )
    for what, how in lines:
        console.print(Text(f"{what:<30}", style="dim") + Text(how), soft_wrap=True)
    console.print()
    console.print(
        "The embedded base is small (7 million weights). Tuned, it tells what kind of thing a name is and writes as "
        "such documentation does; what its sentences say is mostly made up, for it knows next to nothing. For work, "
        "name a larger base in the recipe.",
        style="dim",
    )


def _short(path: Path) -> str:
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)
