"""Votes in the terminal: two answers side by side, and the ranking of models."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tunesmith.report.colors import ALSO, GOOD, THIRD, WARNING

NARROW = 60
"""Columns of a terminal below which the answers are one below the other."""

SIDES = (ALSO, THIRD)
"""The colors of the first and the second answer."""

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "␡"}
_C1 = dict.fromkeys(range(0x80, 0xA0), "�")


def printable(text: str) -> str:
    """A text that a model wrote, without what a terminal would obey.

    Args:
        text: any.

    Returns:
        The text, with control characters as the signs that stand for them.
    """
    return text.replace("\r\n", "\n").translate(_CONTROLS | _C1)


def pair_to_vote(shown: Any, width: int) -> RenderableType:
    """A question, two answers and the keys.

    Args:
        shown: the pair, of `tunesmith.voting.vote`.
        width: of the terminal, in columns.
    """
    answers = two_answers(shown.prompt, shown.answers, shown.number, shown.total, shown.source, width)
    return Group(answers, keys_line(shown.undoable))


def two_answers(
    prompt: Sequence[Mapping[str, Any]], answers: Sequence[str], number: int, total: int, source: str, width: int
) -> RenderableType:
    """A question and two answers, without their models.

    Args:
        prompt: the turns before the answers.
        answers: the first and the second.
        number: of the pair.
        total: how many pairs there are.
        source: the row that the question comes from.
        width: of the terminal, in columns.

    Returns:
        The answers side by side; one below the other in a narrow terminal.
    """
    turns = Table.grid(padding=(0, 2, 0, 0))
    turns.add_column(style="dim", no_wrap=True)
    turns.add_column(overflow="fold")
    for turn in prompt:
        turns.add_row(str(turn["role"]), Text(printable(str(turn.get("content") or "")), style="bold"))
    panels = [
        Panel(
            Text(printable(answer), overflow="fold"), title=Text(f"{at}", style=f"bold {color}"), title_align="left",
            border_style=color, box=ROUNDED,
        )
        for at, answer, color in zip((1, 2), answers, SIDES, strict=True)
    ]  # fmt: skip
    both: RenderableType
    if width < NARROW:
        both = Group(*panels)
    else:
        grid = Table.grid(expand=True)
        for _ in panels:
            grid.add_column(ratio=1)
        grid.add_row(*panels)
        both = grid
    heading = Rule(Text(f"{number:,} of {total:,} · {printable(source)}", style="dim"), align="left", style="dim")
    return Group(heading, Padding(turns, (1, 1)), both)


def keys_line(undoable: bool) -> Text:
    """What each key does.

    Args:
        undoable: whether there is something to undo.

    Returns:
        One line of less than eighty columns.
    """
    keys = [("1", "is better"), ("2", "is better"), ("t", "tie"), ("s", "skip"), ("u", "undo"), ("q", "quit")]
    line = Text(" ")
    for key, does in keys:
        style = dict(zip("12", SIDES, strict=True)).get(key, "")
        if key == "u" and not undoable:
            line.append(f"{key} {does}   ", style="dim strike")
        else:
            line.append(key, style=f"bold {style}").append(f" {does}   ", style="dim")
    return line


def voted_text(voted: Any) -> Text:
    """What a session of votes came to.

    Args:
        voted: of `tunesmith.voting.vote.vote`.

    Returns:
        A few lines.
    """
    text = Text()
    whole = f"{voted.voter} has voted on {voted.done:,} of {voted.pairs:,} pairs, {voted.votes:,} of them now."
    if not voted.pairs:
        whole = "There is nothing to vote on."
    text.append(whole, style=f"bold {GOOD}" if voted.is_complete else "bold")
    left_out = [
        (voted.equal, "with the same answer twice"),
        (voted.empty, "with an empty answer"),
    ]
    for count, why in left_out:
        if count:
            text.append(f"\nNot asked: {count:,} {'pair' if count == 1 else 'pairs'} {why}.", style=WARNING)
    if voted.skipped:
        text.append(f"\nSkipped: {voted.skipped:,}. The same command asks for them again.")
    if voted.done:
        text.append(f"\nWritten to {voted.path}")
    return text


def ranking_parts(result: Mapping[str, Any]) -> list[RenderableType]:
    """Models by votes, a table for each group that votes connect; and the voters.

    Args:
        result: of `tunesmith.voting.ranking.rank`.

    Returns:
        Tables, and what they mean, at eighty columns.
    """
    groups = [_group_table(group, number, result) for number, group in enumerate(result["groups"], 1)]
    return [*groups, _about_groups(result), Text(), _voters_table(result), _about_voters(result)]


def _group_table(group: Mapping[str, Any], number: int, result: Mapping[str, Any]) -> Table:
    several = len(result["groups"]) > 1
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style=WARNING,
        title=f"Group {number} of {len(result['groups'])}" if several else None,
    )  # fmt: skip
    table.add_column("place", justify="right")
    table.add_column("model", overflow="fold")
    for title in ("won", "tied", "lost", "Elo points (95 %)"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in group["models"]:
        low, high = row["interval"]
        best, worst = row["ranks"]
        points = f"{_signed(row['points'])} ({_signed(low)} to {_signed(high)})"
        place = Text(str(best) if best == worst else f"{best}–{worst}", style=f"bold {GOOD}" if worst == 1 else "")
        table.add_row(place, row["name"], *(f"{row[each]:,}" for each in ("wins", "ties", "losses")), points)
    return table


def _about_groups(result: Mapping[str, Any]) -> Text:
    several = len(result["groups"]) > 1
    text = Text()
    if several:
        text.append("No vote compares models of different groups, so their points cannot be compared.\n", style=WARNING)
    text.append(
        f"{result['votes']:,} vote{'' if result['votes'] == 1 else 's'}. 0 points is the mean of "
        f"{'a group' if several else 'these models'}; with 100 more, a model is preferred in 64% of the votes that are "
        "no ties. A place is a range where the votes do not show which model is better."
    )
    if result["repeated"]:
        text.append(f" Earlier votes on the same answers do not count: {result['repeated']:,}.")
    return text


def _voters_table(result: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("voter", overflow="fold")
    table.add_column("votes", justify="right")
    table.add_column("chose the answer shown first (95 %)", justify="right", no_wrap=True)
    rows = list(result["voters"].items())
    if len(rows) > 1:
        rows.append(("all", {"votes": result["votes"], "shown_first": result["shown_first"]}))
    for voter, found in rows:
        table.add_row(voter, f"{found['votes']:,}", _share(found["shown_first"]))
    return table


def _about_voters(result: Mapping[str, Any]) -> Text:
    first, found = result["shown_first"], result["agreement"]
    text = Text()
    if first is not None and not first["interval"][0] <= 0.5 <= first["interval"][1]:
        text.append(
            "The side mattered: the interval of all votes does not contain 50%. Sides are random, so this adds noise "
            "and favors no model.\n",
            style=WARNING,
        )
    if found is None:
        return text.append("No two voters voted on the same answers, so how far they agree is not known.")
    low, high = found["alpha"]["interval"]
    return text.append(
        f"Agreement on the {found['pairs']:,} pairs with several votes: Krippendorff's alpha "
        f"{found['alpha']['value']:.2f} ({low:.2f} to {high:.2f}; 1 is full, 0 is chance), equal votes "
        f"{_share(found['share'])}."
    )


def _share(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "—"
    low, high = figure["interval"]
    return f"{figure['value']:.0%} ({low:.0%}–{high:.0%})"


def _signed(points: float) -> str:
    return f"{points:+.0f}".replace("-", "−")
