"""One key at a time, from a terminal or a pipe; and who presses it."""

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.errors import UserError

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
