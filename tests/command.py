"""Runs `tunesmith …` command lines within the test's own process."""

import contextlib
import io
import logging
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

from tunesmith.cli import main


class Terminal(io.StringIO):
    """Lines that a person types."""

    def isatty(self) -> bool:
        return True


def typed(*arguments: str, given: str = "", in_terminal: bool = False) -> CompletedProcess[str]:
    """Run `tunesmith ARGUMENTS` with `given` on stdin, or typed in a terminal; returns exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    logger = logging.getLogger("tunesmith")
    handlers = logger.handlers
    with (
        patch("sys.argv", ["tunesmith", *arguments]),
        patch("sys.stdin", Terminal(given) if in_terminal else io.StringIO(given)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        finally:
            logger.handlers = handlers  # the command's own writes to `err`
    return CompletedProcess([*arguments], code, out.getvalue(), err.getvalue())


def output_of(*arguments: Any, given: str = "") -> str:
    """The standard output of a command that succeeds."""
    result = typed(*map(str, arguments), given=given)
    assert result.returncode == 0, result.stderr
    return result.stdout
