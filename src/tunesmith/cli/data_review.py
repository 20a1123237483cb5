"""`tunesmith data review`: look at rows and say which to keep, one key a row."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tunesmith.cli.pressed_keys import pressed_keys, user_name
from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError
from tunesmith.report.colors import WARNING

if TYPE_CHECKING:
    from tunesmith.curation.review import ShownRow


def review(
    file: Annotated[Path, typer.Argument(help="Rows to look at, for example of tunesmith data sample.")],
    output: Annotated[
        Path | None, typer.Option(help="The file that verdicts are appended to; default: FILE.verdicts.jsonl.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label that a key gives a row; up to nine.")] = None,
    reviewer: Annotated[str | None, typer.Option(help="Who reviews; default: the name of the user.")] = None,
) -> None:
    """Look at rows one by one, with what checks say, and keep, drop or relabel each with one key. The same command
    continues where it was left; `tunesmith data clean --verdicts` does what was said."""
    with quick_imports():
        from tunesmith.curation.review import data_review
        from tunesmith.report.progress import Progress
        from tunesmith.report.review import reviewed_text

    console = Console(highlight=False)
    progress = Progress(console)
    with progress, pressed_keys() as keys:
        found = data_review(
            file, _Asking(console, keys, progress), output, labels=label or [], subscribers=[progress],
            reviewer=user_name("--reviewer") if reviewer is None else reviewer,
        )  # fmt: skip
    console.print()
    console.print(reviewed_text(found), soft_wrap=True)
    if found.done < found.rows:
        console.print("The same command continues here.", soft_wrap=True)


class _Asking:
    """Shows a row, and reads a key.

    Args:
        console: of the terminal.
        keys: what is pressed.
        progress: whose bars end before the first row is shown.
    """

    def __init__(self, console: Console, keys: Iterator[str], progress: Any) -> None:
        self._console, self._keys, self._progress = console, keys, progress
        self._is_first = True

    def __call__(self, shown: "ShownRow") -> str:
        from tunesmith.report.review import row_to_review

        if self._is_first:
            self._progress.__exit__(None, None, None)
        if self._console.is_terminal:
            self._console.clear()
        self._console.print(row_to_review(shown))
        for key in self._keys:
            if key in shown.keys:
                self._is_first = False
                return key
            hint = f"{key!r} is none of {', '.join(shown.keys)}"
            if not sys.stdin.isatty():
                raise UserError(f"stdin: {hint}. Verdicts before it are written.")
            self._console.print(f" {hint}", style=WARNING)
        if self._is_first and not sys.stdin.isatty():
            raise UserError("stdin is no terminal and has no keys. Run this in a terminal, or pipe keys: k, d, s.")
        return "q"
