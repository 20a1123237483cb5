"""The command line, one file per verb. Each parses, calls and prints, and has no other logic."""

import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tunesmith.cli.advise import advise
from tunesmith.cli.bases import bases
from tunesmith.cli.compare import compare
from tunesmith.cli.data import data
from tunesmith.cli.demo import demo
from tunesmith.cli.evaluate import evaluate
from tunesmith.cli.export import export
from tunesmith.cli.init import init
from tunesmith.cli.methods import methods
from tunesmith.cli.parity import parity
from tunesmith.cli.plan import plan
from tunesmith.cli.prompt import prompt
from tunesmith.cli.report import report
from tunesmith.cli.retrieve import ask, index, search
from tunesmith.cli.runs import runs
from tunesmith.cli.schema import schema
from tunesmith.cli.serve import keys, serve
from tunesmith.cli.train import train
from tunesmith.cli.use import answer, chat, classify, combine, embed, generate, reward
from tunesmith.cli.vote import rank, vote
from tunesmith.errors import UserError

app = typer.Typer(
    name="tunesmith",
    help="Adapt a language model to your own work, on the hardware you have, and show that it worked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    demo,
    init,
    methods,
    plan,
    train,
    evaluate,
    report,
    generate,
    chat,
    answer,
    classify,
    reward,
    embed,
    combine,
    export,
    parity,
    index,
    search,
    ask,
    advise,
    compare,
    vote,
    rank,
    serve,
    runs,
    schema,
):
    app.command()(verb)
app.add_typer(data, name="data")
app.add_typer(bases, name="bases")
app.add_typer(keys, name="keys")
app.add_typer(prompt, name="prompt")


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if show:
        from tunesmith import __version__

        Console().print(f"tunesmith {__version__}", highlight=False)
        raise typer.Exit
    # Libraries send no usage statistics, unless the user's environment turns them on.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    _show_log()
    # On a CPU, bitsandbytes logs at import which faster kernels could be downloaded.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


def _show_log() -> None:
    """What our modules log, such as that a base is being fetched, goes to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("tunesmith")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


@cache
def command() -> Callable[..., Any]:
    """All of `app`'s verbs, with their options read from the functions' annotations once in a process."""
    return typer.main.get_command(app)


def main() -> None:
    """Exit codes: 0 done, 1 a bug of ours, 2 a problem that the user can fix, 130 interrupted and resumable."""
    try:
        command()()
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
