"""Answers that match a regular expression."""

from collections.abc import Callable
from pathlib import Path

import regex

from tunesmith.errors import UserError
from tunesmith.metrics.metric import Metric

SECONDS = 1.0
"""How long one answer may take: a pattern such as (a|aa)+$ can need longer than the universe has."""

Match = regex.Match[str]


def searching(pattern: str, what: str, whole: bool = False, flags: int = 0) -> Callable[[str], Match | None]:
    """What looks for a pattern in texts.

    Args:
        pattern: a regular expression of the package regex, whose syntax includes Python's.
        what: has the pattern, for errors.
        whole: whether it must match the whole text.
        flags: of the package regex.

    Returns:
        A function from a text to the first match; None if there is none. It raises a UserError if a text takes longer
        than a second.

    Raises:
        UserError: it is no regular expression.
    """
    try:
        compiled = regex.compile(pattern, flags)
    except regex.error as error:
        raise UserError(f"{what} is not a regular expression: {error}.") from None
    search = compiled.fullmatch if whole else compiled.search

    def found(text: str) -> Match | None:
        try:
            return search(text, timeout=SECONDS)
        except TimeoutError:
            raise UserError(
                f"{what} took longer than {SECONDS:g} s on an answer of {len(text):,} characters. "
                "Several ways to match the same text make it slow: write (a|aa)+ as a+."
            ) from None

    return found


def regex_metric(pattern: str, directory: Path) -> Metric:
    """The share of answers in which a pattern is found.

    Args:
        pattern: as in `searching`. It may match anywhere.
        directory: not used; every metric with a setting has it.

    Returns:
        The metric; its score is 0 or 1.

    Raises:
        UserError: as `searching` raises.
    """
    found = searching(pattern, f"--metric regex:{pattern}")

    def score(answer: str, expected: str) -> float:
        return float(found(answer) is not None)

    return Metric(f"matches {pattern}", f"answers in which the regular expression {pattern} is found", score)
