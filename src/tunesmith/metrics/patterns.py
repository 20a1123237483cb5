"""Answers that match a regular expression."""

from pathlib import Path

import regex

from tunesmith.errors import UserError
from tunesmith.metrics.metric import Metric

SECONDS = 1.0
"""How long one answer may take: a pattern such as (a|aa)+$ can need longer than the universe has."""


def regex_metric(pattern: str, directory: Path) -> Metric:
    """The share of answers in which a pattern is found.

    Args:
        pattern: a regular expression of the package regex, whose syntax includes Python's. It may match anywhere.
        directory: not used; every metric with a setting has it.

    Returns:
        The metric; its score is 0 or 1.

    Raises:
        UserError: it is no regular expression, or matching an answer takes longer than a second.
    """
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise UserError(f"--metric regex:{pattern} is not a regular expression: {error}.") from None

    def score(answer: str, expected: str) -> float:
        try:
            return float(compiled.search(answer, timeout=SECONDS) is not None)
        except TimeoutError:
            raise UserError(
                f"--metric regex:{pattern} took longer than {SECONDS:g} s on an answer of {len(answer):,} characters. "
                "Several ways to match the same text make it slow: write (a|aa)+ as a+."
            ) from None

    return Metric(f"matches {pattern}", f"answers in which the regular expression {pattern} is found", score)
