"""How many rows a command reads: a number, or all."""

from contextlib import suppress
from pathlib import Path

from tunesmith.errors import UserError


def row_count(text: str, least: int = 0) -> int | None:
    """Read an option `--rows`.

    Args:
        text: what the option was given.
        least: the smallest number that is allowed.

    Returns:
        The number of rows; None for all.

    Raises:
        UserError: it is neither such a number nor `all`.
    """
    if text == "all":
        return None
    if text.isdecimal() and len(text) < 19 and int(text) >= least:
        return int(text)
    with suppress(OSError):  # a long text, or a directory that cannot be read
        if Path(text).is_file():
            raise UserError(f"--rows {text} is not a number of rows. Name files with --data {text}.")
    raise UserError(f"--rows {text} is not a number of rows. Use a number, or all.")
