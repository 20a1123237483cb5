"""`tunesmith demo`: from this Python's own functions to a model that writes the tool definitions of new ones."""

import json
import shlex
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.text import Text

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError
from tunesmith.report.colors import ALSO, BAD, GOOD, WARNING

if TYPE_CHECKING:
    from tunesmith.demo.side_by_side import SideBySide

BASE = "smollm2-135m-instruct"

ASK = '''\
def get_weather(city: str, days: int = 3, metric: bool = True) -> str:
    """Get the weather forecast for a city.

    Args:
        city: The name of the city.
        days: How many days to forecast.
        metric: Whether to use Celsius.
    """
'''

HELD_OUT = 16
"""Held-out functions, for which both models write definitions."""

MOST_ROWS = 500
"""Functions for training: several times as many as the demo's time allows."""

LONGEST_ANSWER = 180
"""Tokens; a definition of one of the rows has fewer."""

GENERAL_ANSWER, BASE_ANSWER = 24, 80
"""Tokens of an answer that is shown to be looked at and not scored."""


def demo(
    base: Annotated[
        str | None, typer.Option(help=f"What to train; default: {BASE}, or embedded where it cannot be fetched.")
    ] = None,
    ask: Annotated[
        str, typer.Option(help="A Python function whose tool definition the trained model writes at the end.")
    ] = ASK,
    directory: Annotated[
        Path | None,
        typer.Option(help="Where to write data and run; default: a new directory in runs/. A finished demo is asked."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field of the demo's recipe.")] = None,
) -> None:
    """The full workflow on real data in four minutes: rows, plan, training, evaluation, use."""
    with quick_imports():
        from tunesmith.demo.tools import question
        from tunesmith.run import Run

    console = Console(highlight=False)
    asked = question(ask)
    if directory is not None and Run(directory / "run").finished:
        _show_ask(console, directory / "run", asked)
        return
    if base is not None:
        _refuse_base(base)
    with quick_imports():
        from tunesmith.demo.recipe import new_directory
        from tunesmith.demo.side_by_side import SideBySide

    started = time.perf_counter()
    with new_directory(directory) as directory:
        run = _train(console, directory, base, set_ or [])
        _evaluate(console, run)
    models = SideBySide.of(run)
    _heading(console, "4. What else changed?", "Questions that have nothing to do with the rows, before and after.")
    _show_general(console, models)
    _heading(console, "5. Use it", "A function that it has not seen. Yours: tunesmith demo --ask 'def f(…): …'")
    _show_definitions(console, models, asked)
    _heading(console, f"6. Next steps, after {_minutes(time.perf_counter() - started)}", "")
    _show_next(console, directory)


def _train(console: Console, directory: Path, base: str | None, overrides: list[str]) -> Path:
    """Write rows and recipe, and train. Returns the run's directory."""
    from tunesmith.demo.functions import packages
    from tunesmith.demo.prose import write_prose
    from tunesmith.demo.tools import write_rows

    _heading(console, "1. The data", "Functions of this Python and their tool definitions, as chat models call them.")
    with ProcessPoolExecutor(1, get_context("spawn")) as other:  # reads functions while this process loads libraries
        writing = other.submit(write_rows, directory, found=packages(), most_held_out=HELD_OUT, most_train=MOST_ROWS)
        writing_prose = other.submit(write_prose, directory)
        name = _fetched(console, base)
        with quick_imports():
            from tunesmith.demo.recipe import sets_steps, write_recipe
            from tunesmith.report.progress import Progress
            from tunesmith.training.stages import train
        train_file, _, counts = writing.result()
        writing_prose.result()
    _show_data(console, counts, train_file)
    _heading(console, f"2. Training {name}", f"The recipe: {_short(directory / 'recipe.yaml')}")
    recipe = write_recipe(directory, name, overrides)
    if not sets_steps(overrides):
        steps, tokens = recipe.train.steps, recipe.train.tokens_per_step
        console.print(f"The speed of this machine allows {steps} steps of {tokens:,} tokens.", style="dim")
    with Progress(console) as progress:
        run = train(recipe, directory / "run", [], [progress])
    if not run.finished:
        console.print(f"Interrupted; everything is saved. Resume: tunesmith train --resume {_short(run.directory)}")
        raise typer.Exit(130)
    return run.directory


def _refuse_base(base: str) -> None:
    """Refuse what the demo cannot train, before anything is written.

    Raises:
        UserError: there is no such base, or it writes no text.
    """
    with quick_imports():
        from tunesmith.config.base import Base
        from tunesmith.models.bases import known_bases
        from tunesmith.models.load import check_base_kind, load_tokenizer
        from tunesmith.objectives.instruction import Instruction

    if "/" not in base and base not in ("embedded", *known_bases()) and not Path(base).exists():
        raise UserError(
            f"base: {base} is no directory, no short name (tunesmith bases), and no hub name with its owner, such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    check_base_kind(Base(path=base), Instruction())
    load_tokenizer(Base(path=base))


def _fetched(console: Console, base: str | None) -> str:
    """The base, on this machine; the embedded one if the default cannot be fetched."""
    from tunesmith.config.base import Base
    from tunesmith.models.load import locate

    try:
        locate(Base(path=base or BASE))
    except UserError as error:
        if base is not None:
            raise
        message = f"{error} The demo continues with the embedded base, which is small."
        console.print(message, style=WARNING, markup=False)
        return "embedded"
    return base or BASE


def _evaluate(console: Console, run: Path) -> None:
    """Compare both models on held-out functions, and write the report."""
    with quick_imports():
        from tunesmith.demo.tools import TOOL_METRICS
        from tunesmith.evaluation.compare import evaluate
        from tunesmith.report.html import write_report
        from tunesmith.report.progress import Progress
        from tunesmith.report.table import evaluation_table, samples_table

    _heading(console, "3. Did it work?", "On functions of packages that were not in the training data.")
    with Progress(console) as progress:
        result = evaluate(run, HELD_OUT, LONGEST_ANSWER, subscribers=[progress], metrics=TOOL_METRICS)
    console.print(evaluation_table(result))
    console.print(samples_table(result["samples"][:2]))
    write_report(run)


def _show_general(console: Console, models: "SideBySide") -> None:
    """Five answers of both models, and their loss on general prose."""
    from tunesmith.demo.side_by_side import GENERAL_QUESTIONS
    from tunesmith.report.table import samples_table

    base = models.base_answers(GENERAL_QUESTIONS, GENERAL_ANSWER)
    tuned = models.tuned_answers(GENERAL_QUESTIONS, GENERAL_ANSWER)
    samples = zip(GENERAL_QUESTIONS, base, tuned, strict=True)
    console.print(samples_table([{"prompt": ask, "answers": {"base": b, "tuned": t}} for ask, b, t in samples]))
    before, after = models.general_losses()
    change, (low, high) = before.difference(after)
    console.print(
        f"Loss on general text, {len(before.sums)} docstrings of modules: {before.loss:.3f} before, {after.loss:.3f} "
        f"after; difference {change:+.3f} [{low:+.3f}, {high:+.3f}] nats per token."
    )


def _show_ask(console: Console, run: Path, asked: str) -> None:
    with quick_imports():
        from tunesmith.demo.side_by_side import SideBySide

    _show_definitions(console, SideBySide.of(run), asked)


def _show_definitions(console: Console, models: "SideBySide", asked: str) -> None:
    """What the tuned model writes for the question, then how its base begins."""
    code = asked.split("```python\n")[1].removesuffix("\n```")
    console.print(Padding(_highlighted(code, "python"), (0, 2)))
    console.print(f"[bold {GOOD}]tuned[/]")
    (tuned,) = models.tuned_answers([asked], 2 * LONGEST_ANSWER)
    console.print(Padding(_pretty(tuned), (0, 2)))
    console.print(f"[bold {BAD}]base[/], its first {BASE_ANSWER} tokens")
    (base,) = models.base_answers([asked], BASE_ANSWER)
    console.print(Padding(Text(base), (0, 2)))


def _pretty(answer: str) -> Syntax | Text:
    """JSON, indented; any other text as it is."""
    try:
        return _highlighted(json.dumps(json.loads(answer), indent=2, ensure_ascii=False), "json")
    except ValueError:
        return Text(answer)


def _heading(console: Console, title: str, line: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left")
    if line:
        console.print(line, style="dim", markup=False, soft_wrap=True)


def _show_data(console: Console, counts: dict[str, int], train: Path) -> None:
    console.print(
        f"{counts['train']:,} functions of {counts['train_packages']:,} packages for training; "
        f"{counts['held_out']:,} of {counts['held_out_packages']:,} other packages held out for evaluation."
    )
    left_out = sum(count for name, count in counts.items() if name.startswith("left out"))
    console.print(
        f"Left out: {left_out:,} functions that are long, or without types and plain descriptions of all parameters; "
        f"{counts['held_out_removed']:,} held-out ones whose definition also occurs in training; "
        f"{counts['train_not_written'] + counts['held_out_not_written']:,} that the demo has no time for."
    )
    with train.open(encoding="utf-8") as file:
        example: dict[str, Any] = json.loads(next(file))
    text = f"{example['question']}\n\n{example['answer']}"
    console.print(Padding(Text(text, style=ALSO), (1, 2, 0, 2)))


def _show_next(console: Console, directory: Path) -> None:
    from tunesmith.run import Run

    run = _short(directory / "run")
    ask = f"tunesmith demo --directory {_short(directory)} --ask {shlex.quote('def f(x: int): ...')}"
    adapter = (
        ("the adapter, in PEFT's format", f"{run}/adapter"),
        ("merge it into one model", f"tunesmith export {run} --to hf --output my-model"),
    )
    model = (("the trained model", f"{run}/model"),)
    output = Run(directory / "run").output
    lines = (
        ("ask it yourself", ask),
        *(adapter if output is not None and output.name == "adapter" else model),
        ("the report, with curves", f"tunesmith report {run} --open"),
        ("talk with it", f"tunesmith chat {run}"),
        ("your own rows", "tunesmith init rows.jsonl && tunesmith train recipe.yaml"),
    )
    for description, command in lines:
        console.print(Text(f"{description:<30}", style="dim") + Text(command), soft_wrap=True)


def _minutes(seconds: float) -> str:
    from tunesmith.report.formatting import duration

    return duration(seconds)


def _short(path: Path) -> str:
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def _highlighted(code: str, language: str) -> Syntax:
    with quick_imports():
        from tunesmith.report.code_theme import CODE

    return Syntax(code, language, theme=CODE, word_wrap=True)
