"""`tunesmith vote` and `rank`: people compare answers, and models are ranked by what they say."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tunesmith.cli.pressed_keys import KeyPrompt, pressed_keys, user_name
from tunesmith.cli.quick import quick_imports
from tunesmith.cli.row_count import row_count

if TYPE_CHECKING:
    from tunesmith.voting.vote import Shown


def vote(
    models: Annotated[
        list[str],
        typer.Argument(help="Two or more: runs, adapters, models, http://HOST/v1#MODEL. A run alone: beside its base."),
    ],
    output: Annotated[Path, typer.Option(help="The file that votes are appended to.")] = Path("votes.jsonl"),
    data: Annotated[
        list[str] | None, typer.Option(help="Files of rows with questions; default: the first run's held-out rows.")
    ] = None,
    rows: Annotated[str, typer.Option(help="How many questions, evenly spaced, or all.")] = "50",
    voter: Annotated[str | None, typer.Option(help="Who votes; default: the name of the user.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the pairs and of who stands where.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens in an answer.", min=1)] = 256,
    repetition_penalty: Annotated[
        float, typer.Option(help="1: none; 1.2 keeps small models out of loops.", min=1)
    ] = 1.0,
    concurrent: Annotated[int, typer.Option(help="The most answers at the same time.", min=1)] = 64,
    cache: Annotated[bool, typer.Option(help="Keep answers, so that nothing is computed twice.")] = True,
) -> None:
    """Say which of two models' answers is better, without knowing whose they are: one key a pair. The votes are rows to
    train on (`objective: {kind: dpo}`). The same command continues where it was left."""
    most = row_count(rows, least=1)
    with quick_imports():
        import tunesmith.voting.vote
        from tunesmith.report.progress import Progress
        from tunesmith.report.votes import pair_to_vote, ranking_parts, voted_text
        from tunesmith.voting.ranking import rank

    console, who = Console(highlight=False), user_name("--voter") if voter is None else voter
    progress = Progress(console)
    with progress, pressed_keys() as keys:
        prompt = KeyPrompt(console, keys, progress, "Votes", "1, 2, t")

        def ask(shown: "Shown") -> Any:
            return prompt.ask(pair_to_vote(shown, console.width), "12tsuq" if shown.undoable else "12tsq")

        voted = tunesmith.voting.vote.vote(
            models, ask, output, voter=who, data=data,
            rows=most, seed=seed, max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty, concurrent=concurrent, cache=cache, subscribers=[progress],
        )  # fmt: skip
    console.print()
    console.print(voted_text(voted), soft_wrap=True)
    if not voted.is_complete:
        console.print("The same command continues here. `tunesmith rank` shows what all votes say.", soft_wrap=True)
    elif voted.done:
        for part in ranking_parts(rank([output])):
            console.print(part)


def rank(
    files: Annotated[list[str], typer.Argument(help="Files of votes.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank models by votes, and show how far the voters agree and what the position did."""
    with quick_imports():
        import tunesmith.voting.ranking
        from tunesmith.report.votes import ranking_parts
        from tunesmith.run import jsonable

    result = tunesmith.voting.ranking.rank(files)
    if as_json:
        print(json.dumps(jsonable(result), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    for part in ranking_parts(result):
        console.print(part)
