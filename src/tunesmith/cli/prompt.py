"""`tunesmith prompt`: prompts as files, and the search for them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError
from tunesmith.report.colors import WARNING

if TYPE_CHECKING:
    from tunesmith.prompting.prompt import Prompt

PromptFile = Annotated[
    Path | None,
    typer.Option("--prompt", help="A prompt before the question: YAML, a text file, or a run that has one."),
]

prompt = typer.Typer(
    help="Prompts as files: show one as a model reads it, search for a better one.", no_args_is_help=True
)


def prompt_of(file: Path | None) -> "Prompt | None":
    """The prompt in a file.

    Args:
        file: None: there is none.

    Raises:
        UserError: it is no prompt.
    """
    if file is None:
        return None
    with quick_imports():
        from tunesmith.prompting.prompt import Prompt

    return Prompt.load(file)


@prompt.command()
def show(
    file: Annotated[Path, typer.Argument(help="A prompt: YAML, a text file, or a run that has one.")],
    question: Annotated[str, typer.Argument(help="What the user says.")] = "…",
) -> None:
    """Show a prompt's version, and what stands before a question."""
    with quick_imports():
        from tunesmith.prompting.prompt import Prompt
        from tunesmith.prompting.prompted import render
        from tunesmith.prompting.shots import Shots

    loaded = Prompt.load(file)
    shots, chat = Shots.of(loaded), [{"role": "user", "content": question}]
    console = Console(highlight=False)
    console.print(f"version {loaded.version}", style="dim")
    if shots is not None and shots.left_out + shots.repeated:
        counts = (
            f"{shots.left_out:,} rows without a plain question and answer, and {shots.repeated:,} repeated questions"
        )
        console.print(f"{counts}, are never shown.", style=WARNING, soft_wrap=True)
    for turn in render(loaded, chat, [] if shots is None else shots.for_chat(chat)):
        console.print(f"{turn['role']}:", style="bold")
        console.print(turn["content"], markup=False, soft_wrap=True)


@prompt.command()
def search(
    model: Annotated[str, typer.Argument(help="A run, an adapter, a model, or http://HOST/v1#MODEL.")],
    source: Annotated[
        str | None, typer.Argument(help="A recipe, a run or a file of rows; default: the model's own, if it is a run.")
    ] = None,
    candidates: Annotated[list[Path] | None, typer.Option(help="A prompt of yours; repeat for several.")] = None,
    template: Annotated[
        Path | None, typer.Option(help="A prompt whose variables have lists of values: each combination is tried.")
    ] = None,
    writer: Annotated[str | None, typer.Option(help="A model that writes prompts from a few training rows.")] = None,
    writer_count: Annotated[int, typer.Option(help="How many it is asked for.", min=1)] = 4,
    k: Annotated[str, typer.Option("--k", help="Numbers of few-shot examples to try with each prompt.")] = "0,4",
    choose: Annotated[str, typer.Option(help="How they are chosen: random, similar, diverse, or several.")] = "similar",
    encoder: Annotated[
        str | None, typer.Option(help="A model by whose vectors questions are compared; default: by their words.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Of the answers; default: fields of JSON, equality of short answers, else ROUGE-L."),
    ] = None,
    rows: Annotated[int, typer.Option(help="The most training rows, and held-out rows, to answer.", min=1)] = 200,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens in an answer.", min=1)] = 128,
    seed: Annotated[int, typer.Option(help="Of the choice of rows.")] = 0,
    concurrent: Annotated[int, typer.Option(help="The most answers at the same time.", min=1)] = 64,
    cache: Annotated[bool, typer.Option(help="Keep answers, so that nothing is computed twice.")] = True,
    output: Annotated[Path | None, typer.Option(help="A .yaml file for the winner, or a run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search for the prompt and few-shot examples with which a model answers best, on training rows; the winner is
    measured on held-out rows."""
    numbers = _numbers(k)
    with quick_imports():
        import tunesmith.prompting.search
        from tunesmith.report.progress import Progress
        from tunesmith.report.prompting import search_text
        from tunesmith.run import jsonable

    console = Console(highlight=False)
    with Progress(Console(stderr=True, highlight=False) if as_json else console) as progress:
        result = tunesmith.prompting.search.prompt_search(
            model, source, candidates=candidates or [], template=template, writer=writer, writer_count=writer_count,
            k=numbers, choose=[each.strip() for each in choose.split(",")], encoder=encoder, metric=metric, rows=rows,
            max_new_tokens=max_new_tokens, seed=seed, output=output, concurrent=concurrent, cache=cache,
            subscribers=[progress],
        )  # fmt: skip
    if as_json:
        print(json.dumps(jsonable(result), indent=2, ensure_ascii=False))
        return
    console.print(search_text(result))
    if result["output"] is not None:
        console.print(f"Written to {result['output']}", soft_wrap=True)


def _numbers(text: str) -> list[int]:
    """The numbers of a list such as `0,2,4`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--k {text} is not a list of numbers such as 0,2,4.")
    return [int(part) for part in parts]
