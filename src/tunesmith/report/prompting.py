"""What a search for a prompt prints in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tunesmith.report.colors import GOOD
from tunesmith.report.figures import template_of, title_of, value_text
from tunesmith.report.formatting import number
from tunesmith.report.table import evaluation_table

VERDICTS = {
    "better": "On held-out rows it is shown to be better than no prompt.",
    "worse": "On held-out rows it is shown to be worse than no prompt: do not use it.",
    "not shown": "On held-out rows no difference from no prompt is shown.",
    "no prompt": "The model answered best without a prompt.",
}


def search_table(result: Mapping[str, Any]) -> Table:
    """Each candidate with its figure on development rows, and how it left the race.

    Args:
        result: as `tunesmith.prompt_search` returns it.

    Returns:
        The table, at eighty columns.
    """
    metric, development = result["metric"], result["development"]
    values = [number(each["value"]) for each in result["candidates"]]
    template = template_of(metric["unit"], values)
    rounds = ", ".join(f"{rows:,}" for rows in development["rounds"])
    caption = (
        f"On training rows, {rounds} of them after each round. In brackets: 95 % intervals. A figure on rows by which "
        "candidates were chosen is a little too good; that on held-out rows is not."
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for title in ("candidate", title_of(metric, metric["name"]), "rows", ""):
        table.add_column(title, justify="left" if title in ("candidate", "") else "right")
    for each in sorted(result["candidates"], key=lambda each: -each["round"]):
        style = f"bold {GOOD}" if each["why"] == "winner" else ""
        left = (
            each["why"]
            if each["name"] in (result["winner"], *result["tied"])
            else f"{each['why']}, round {each['round']}"
        )
        table.add_row(Text(each["name"]), value_text(each, template), f"{each['rows']:,}", left, style=style)
    return table


def search_text(result: Mapping[str, Any]) -> Group:
    """What a search found.

    Args:
        result: as `tunesmith.prompt_search` returns it.

    Returns:
        The candidates, the winner's text, and its figure on held-out rows.
    """
    winner = next(each for each in result["candidates"] if each["name"] == result["winner"])
    parts: list[Any] = [
        search_table(result),
        Text.assemble("Winner: ", (winner["name"], "bold"), f", version {winner['version']}"),
    ]
    if winner["system"]:
        parts.append(Text(winner["system"], "dim"))
    if result["tied"]:
        parts.append(Text(f"Not shown to be worse: {', '.join(result['tied'])}."))
    parts += [Text(line) for line in _notes(result, winner)]
    table = evaluation_table(dict(result["held_out"]))
    caption, table.caption = table.caption, None
    return Group(*parts, table, str(caption), Text(VERDICTS[result["verdict"]], "bold"))


def _notes(result: Mapping[str, Any], winner: Mapping[str, Any]) -> list[str]:
    notes = []
    if winner["shortened"]:
        notes.append(f"{winner['shortened']:,} chats had fewer examples than {winner['k']}: the model reads no more.")
    if result["near_held_out"]:
        notes.append(f"{result['near_held_out']:,} training rows were no examples: they are nearly held-out rows.")
    writer = result["writer"]
    if writer is not None and writer["different"] < writer["asked"]:
        notes.append(f"{writer['name']} wrote {writer['different']} different prompts of {writer['asked']}.")
    return notes
