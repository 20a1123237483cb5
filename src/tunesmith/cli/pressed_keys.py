"""One key at a time, from a terminal or a pipe; and who presses it."""

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from tunesmith.errors import UserError
from tunesmith.report.colors import WARNING

if TYPE_CHECKING:
    from tunesmith.report.progress import Progress

END_OF_INPUT = ("", "\x04")


@contextmanager
def pressed_keys() -> Iterator[Iterator[str]]:
    """Keys as they are pressed, without Enter in a terminal, until the input ends. Of other input white space does not
    count."""
    try:
        import termios
        import tty
    except ImportError:  # Windows: a key and Enter
        yield _characters()
        return
    try:
        handle = sys.stdin.fileno()
        before = termios.tcgetattr(handle)
    except (ValueError, OSError, termios.error):  # a pipe, or no file at all
        yield _characters()
        return
    try:
        tty.setcbreak(handle)
        yield _characters()
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _characters() -> Iterator[str]:
    while (key := sys.stdin.read(1)) not in END_OF_INPUT:
        if not key.isspace():
            yield key.lower()


class KeyPrompt:
    """Shows one thing after the other, and waits for a key each time.

    Args:
        console: of the terminal.
        keys: what is pressed.
        progress: whose bars end before the first thing is shown.
        what: the keys are for, in messages: `Votes`.
        usual: keys to name if nothing can be pressed: `1, 2, t`.
    """

    def __init__(self, console: Console, keys: Iterator[str], progress: "Progress", what: str, usual: str) -> None:
        self.console, self._keys, self._progress = console, keys, progress
        self._what, self._usual = what, usual
        self._is_first = True

    def ask(self, shown: RenderableType, allowed: str) -> str:
        """Show something and wait for a key.

        Args:
            shown: what the key is about.
            allowed: the keys, one character each; `u` undoes and `q` quits.

        Returns:
            One of them; `q` at the end of the input.

        Raises:
            UserError: a pipe has another key, or none at all.
        """
        if self._is_first:
            self._progress.__exit__(None, None, None)
        if self.console.is_terminal:
            self.console.clear()
        self.console.print(shown)
        for key in self._keys:
            if key in allowed:
                self._is_first = False
                return key
            known = f"{', '.join(allowed[:-1])} and {allowed[-1]}"
            hint = "there is nothing to undo" if key == "u" else f"{key!r} is none of {known}"
            if not sys.stdin.isatty():
                raise UserError(f"stdin: {hint}. {self._what} before it are written.")
            self.console.print(f" {hint}", style=WARNING)
        if self._is_first and not sys.stdin.isatty():
            raise UserError(
                f"stdin is no terminal and has no keys. Run this in a terminal, or pipe keys: {self._usual}."
            )
        return "q"


def user_name(option: str) -> str:
    """The name of the user.

    Args:
        option: that gives another name.

    Raises:
        UserError: the user has none.
    """
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise UserError(f"The user has no name here. Say who it is: {option} NAME") from None
