"""Answers whose last number is the right one, as in GSM8K."""

import re
from functools import partial
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.metrics.metric import Metric

_SPACE = "\u00a0\u2009\u202f"
"""No-break, thin and narrow no-break: between thousands."""

_DIGITS = rf"\d{{1,3}}(?:[,'’{_SPACE}]\d{{3}})+(?!\d)|\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.)])[-−+])?[$€£¥]?(?P<whole>{_DIGITS}|(?=\.\d))(?P<point>\.\d+)?(?P<power>[eE][-+]?\d+)?"
    rf"(?:\s?/\s?(?P<below>\d+)(?![\d/]))?\s?(?P<percent>%|percent\b)?"
)
_MARKED = re.compile(r"####\s*(.+)")


def last_number(text: str) -> tuple[float, ...]:
    """The last number of a text, or the one after GSM8K's `####`.

    Thousands may be separated (`1,234.5`, `1 234`, `1'234`), a fraction is its value (`3/4`), currency signs do not
    count. Decimals have a point.

    Args:
        text: any text.

    Returns:
        Its values: a percentage has two, 50 and 0.5, as people write either; none if there is no number.
    """
    marked = _MARKED.findall(text)
    found = list(_NUMBER.finditer(marked[-1] if marked else text))
    if not found:
        return ()
    last = found[0] if marked else found[-1]
    whole = re.sub(rf"[,'’{_SPACE}]", "", last["whole"] or "0") or "0"
    value = float(whole + (last["point"] or "") + (last["power"] or ""))
    if last["below"]:
        if not int(last["below"]):
            return ()
        value /= int(last["below"])
    if last["sign"] in ("-", "−"):
        value = -value
    return (value, value / 100) if last["percent"] else (value,)


def number_equal(tolerance: float, answer: str, expected: str) -> float:
    """Whether the last number of the answer is that of the expected answer (Cobbe et al. 2021 for GSM8K).

    Args:
        tolerance: the largest difference, as a share of the expected number.
        answer: the text to score.
        expected: the text that has the right number last.

    Returns:
        0 or 1.
    """
    return float(
        any(
            abs(ours - theirs) <= max(tolerance, 1e-9) * abs(theirs)
            for ours in last_number(answer)
            for theirs in last_number(expected)
        )
    )


def _has_number(text: str) -> bool:
    return bool(last_number(text))


def number_metric(tolerance: str, directory: Path) -> Metric:
    """The share of answers whose last number is within a tolerance of the right one.

    Args:
        tolerance: a share of the right number, such as `0.01` or `1%`.
        directory: not used; every metric with a setting has it.

    Returns:
        The metric; its score is 0 or 1.

    Raises:
        UserError: the tolerance is not a number from 0 on.
    """
    try:
        share = float(tolerance.removesuffix("%")) / (100 if tolerance.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise UserError(
            f"--metric number:{tolerance} needs a share of the right number, such as number:0.01 or number:1%."
        )
    return Metric(
        f"number right ±{share:.3g}",
        f"answers whose last number differs from the expected one by at most {share:.3g} of it",
        partial(number_equal, share),
        _has_number,
    )


NUMBER_METRICS = {
    "number": Metric(
        "number right", "answers whose last number is the expected answer's last number", partial(number_equal, 0.0),
        _has_number,
    )
}  # fmt: skip
"""Metrics of numbers by name."""
