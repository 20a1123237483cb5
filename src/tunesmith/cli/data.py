"""`tunesmith data show`: rows as the model reads them. `tunesmith data convert`: human feedback in another form.

Further verbs have files of their own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tunesmith.cli.data_acts import augment, balance, diff, sample, select, split
from tunesmith.cli.data_check import check
from tunesmith.cli.data_clean import clean, restore
from tunesmith.cli.data_review import review
from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError
from tunesmith.report.colors import BAD, GOOD, WARNING

if TYPE_CHECKING:
    from tunesmith.config.recipe import Recipe
    from tunesmith.data.show import Shown

data = typer.Typer(help="Look at the data, check it, change it, and convert human feedback.", no_args_is_help=True)
for command in (check, clean, restore, review, split, balance, sample, select, augment, diff):
    data.command()(command)

TOKEN_COLORS = ("", "on grey30")
LOSS_STYLE = f"bold {GOOD}"


@data.command()
def show(
    source: Annotated[str, typer.Argument(help="A recipe, or data as data.train takes it.")],
    rows: Annotated[int, typer.Option(help="How many rows.", min=1)] = 3,
    start: Annotated[int, typer.Option(help="The first row to show, from 1.", min=1)] = 1,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show token boundaries.")] = False,
    base: Annotated[
        str, typer.Option(help="Whose tokenizer and chat template to use, if SOURCE is a data file.")
    ] = "embedded",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Set a field of the recipe.")] = None,
) -> None:
    """Show rows as the model reads them. Loss tokens are green (without color: between « and »)."""
    with quick_imports():
        recipe = _recipe(source, base, overrides or [])  # imports its method and its objective, if it can be read

        import tunesmith.data.show
        from tunesmith.models.load import load_tokenizer

    console = Console(highlight=False)
    malformed = 0
    for shown in tunesmith.data.show.show(recipe, load_tokenizer(recipe.base), rows, start):
        if shown.is_malformed:
            malformed += 1
            _heading(console, shown.source, "malformed")
            console.print(f"left out: {shown.fault}", style=f"bold {BAD}", markup=False, soft_wrap=True)
            continue
        _heading(console, shown.source, f"{shown.tokens:,} tokens, {shown.loss_tokens:,} with loss")
        console.print(_highlighted(shown, tokens, console.is_terminal), soft_wrap=not console.is_terminal)
        if shown.fault is not None:
            console.print(f"cannot be trained on: {shown.fault}", style=f"bold {BAD}", markup=False)
    if malformed:
        console.print(
            f"{malformed:,} malformed. A run leaves such rows out and counts them; data.max_malformed: "
            f"{recipe.data.max_malformed:.0%} is the largest share that it accepts.",
            style=WARNING,
            soft_wrap=True,
        )


@data.command()
def convert(
    files: Annotated[list[str], typer.Argument(help="Files of pairs, rankings or ratings.")],
    to: Annotated[str, typer.Option(help="pairs, rankings, ratings, or examples: chats with the best answers.")],
    output: Annotated[Path, typer.Option(help="The file to write, JSON lines; it must not exist.")],
    pairs: Annotated[str, typer.Option(help="Of rankings and ratings: all, or best_and_worst.")] = "all",
) -> None:
    """Write human feedback in another form, and count what became of the rows."""
    if pairs not in ("all", "best_and_worst"):
        raise UserError(f"--pairs {pairs} is not one of all and best_and_worst.")
    with quick_imports():
        import tunesmith.data.convert

    found = tunesmith.data.convert.convert(files, to, output, pairs)  # type: ignore[arg-type]
    console = Console(highlight=False)
    made = ", ".join(f"{count:,} {what}" for what, count in found.written.items())
    console.print(f"Wrote {output}: {made}, from {found.rows:,} rows ({found.format}).", soft_wrap=True)
    for reason in found.left_out:
        console.print(f"left out: {reason}", style=WARNING, markup=False, soft_wrap=True)


def _recipe(source: str, base: str, overrides: list[str]) -> "Recipe":
    from tunesmith.config.recipe import Recipe
    from tunesmith.config.yaml_text import set_field
    from tunesmith.data.format_detection import objective_of_file

    if source.endswith((".yaml", ".yml")):
        return Recipe.load(source, overrides)
    if Path(source, "recipe.yaml").exists():
        return Recipe.load(Path(source, "recipe.yaml"), overrides)
    values: dict[str, Any] = {"base": base, "data": {"train": source}}
    if not any(override.startswith("objective") for override in overrides):
        given: dict[str, Any] = {"data": {}}
        for override in overrides:
            if override.startswith(("data.columns", "data.format")):
                set_field(given, override)
        columns, format = given["data"].get("columns"), given["data"].get("format", "auto")
        values["objective"] = {"kind": objective_of_file([source], columns, format)}
    return Recipe.load(values, overrides)


def _heading(console: Console, source: str, about: str) -> None:
    """A row's name and what is said of it, in a rule if that has room for it."""
    text = Text.assemble((source, "bold"), f" · {about}")
    if text.cell_len + 2 <= console.width:
        console.rule(text, align="left")
    else:
        console.print(text, soft_wrap=True)


def _highlighted(shown: "Shown", tokens: bool, colored: bool) -> Text:
    text = Text()
    inside = False
    for number, piece in enumerate(shown.pieces):
        if not colored and piece.has_loss != inside:
            text.append("«" if piece.has_loss else "»")
        inside = piece.has_loss
        style = LOSS_STYLE if piece.has_loss else "dim"
        background = TOKEN_COLORS[number % 2] if tokens and colored else ""
        visible = piece.text.replace("\n", "↵\n" if tokens else "\n")
        text.append(visible, f"{style} {background}".strip())
        if tokens and not colored:
            text.append("·")
    if inside and not colored:
        text.append("»")
    return text
