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
        Path | None, typer.Option(help="Where to write data and run; default: a new directory in runs/.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field of the demo's recipe.")] = None,
) -> None:
    """The full workflow on real data in three minutes: rows, plan, training, evaluation, answers side by side."""
    with quick_imports():
        from tunesmith.demo.recipe import demo_recipe, new_directory
        from tunesmith.evaluation.compare import evaluate
        from tunesmith.report.html import write_report
        from tunesmith.report.progress import Progress
        from tunesmith.report.table import evaluation_table, samples_table
        from tunesmith.training.stages import train

    console = Console(highlight=False)
    directory = new_directory(directory)
    _heading(console, "1. The data", "Questions and answers from the documentation of this Python.")
    recipe, counts, example = demo_recipe(directory)
    _show_data(console, counts, example)
    _heading(console, "2. Training", f"LoRA on the embedded base. The recipe: {_short(directory / 'recipe.yaml')}")
    with Progress(console) as progress:
        run = train(recipe, directory / "run", set_ or [], [progress])
    if not run.finished:
        console.print(f"Interrupted; everything is saved. Resume: tunesmith train --resume {_short(run.directory)}")
        raise typer.Exit(130)
    _heading(
        console,
        "3. Did it work?",
        "On modules that were not in the training data. The first word of an answer is the kind of thing.",
    )
    with Progress(console) as progress:
        result = evaluate(run.directory, 200, max_new_tokens=40, repetition_penalty=1.2, subscribers=[progress])
    report = write_report(run.directory)
    console.print(evaluation_table(result))
    _heading(
        console,
        "4. Five answers, side by side",
        "Evenly spaced among the held-out questions, not hand-picked. Greedy, repetition penalty 1.2.",
    )
    console.print(samples_table(result["samples"]))
    _heading(console, "5. Next steps", "")
    _show_next(console, run.directory, report, result)


def _heading(console: Console, title: str, line: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left")
    if line:
        console.print(line, style="dim", markup=False, soft_wrap=True)


def _show_data(console: Console, counts: dict[str, int], example: dict[str, str]) -> None:
    console.print(
        f"{counts['train']:,} pairs from {counts['train_modules']:,} modules for training; "
        f"{counts['held_out']:,} pairs from {counts['held_out_modules']:,} other modules held out for evaluation."
    )
    left_out = sum(count for name, count in counts.items() if name.startswith("left out"))
    console.print(
        f"Left out: {left_out:,} docstrings without a plain first sentence, {counts['held_out_removed']:,} held-out "
        "pairs whose answer also occurs in training."
    )
    console.print(
        Padding(Text(f"question  {example['question']}\nanswer    {example['answer']}", style="cyan"), (1, 2, 0, 2))
    )


def _show_next(console: Console, run: Path, report: Path, result: dict[str, Any]) -> None:
    question = result["samples"][0]["prompt"]
    lines = (
        ("the adapter, in PEFT's format", _short(run / "adapter")),
        ("the report, with curves", _short(report)),
        ("ask it yourself", f"tunesmith generate {_short(run)} {shlex.quote(question)} --repetition-penalty 1.2"),
        ("talk with it", f"tunesmith chat {_short(run)}"),
        ("merge it into one model", f"tunesmith merge {_short(run)} --output my-model"),
        ("your own rows", "tunesmith init rows.jsonl && tunesmith train recipe.yaml"),
    )
    for description, command in lines:
        console.print(Text(f"{description:<30}", style="dim") + Text(command), soft_wrap=True)
    console.print()
    console.print(
        "The embedded base is small (7 million parameters). After tuning, it predicts what kind of thing a name is and "
        "writes in the style of such documentation. The content of its sentences is mostly made up, because it knows "
        "very little. For real work, set a larger base in the recipe.",
        style="dim",
    )


def _short(path: Path) -> str:
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)
