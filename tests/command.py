"""`tunesmith …` as it is typed, within the test's own process."""

import contextlib
import io
from unittest.mock import patch

from tunesmith.cli import main


def typed(*arguments: str, given: str = "") -> tuple[int, str]:
    """`tunesmith ARGUMENTS` with `given` on stdin: exit code, and what it wrote, errors among the rest."""
    written = io.StringIO()
    with (
        patch("sys.argv", ["tunesmith", *arguments]),
        patch("sys.stdin", io.StringIO(given)),
        contextlib.redirect_stdout(written),
        contextlib.redirect_stderr(written),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return code, written.getvalue()
