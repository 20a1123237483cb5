"""Answers that are Python code and run. Only computed if asked for by name: it executes what a model wrote."""

import re
from functools import partial
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.metrics.metric import Metric
from tunesmith.metrics.sandbox import Limits, isolation, run_python

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE)


def code_of(answer: str) -> str:
    """The code in an answer.

    Args:
        answer: code, or text with code in Markdown fences.

    Returns:
        What is in the fences, one below the other; the answer if it has none.
    """
    blocks = _BLOCK.findall(answer)
    return "\n\n".join(blocks) if blocks else answer


def code_runs(limits: Limits, answer: str, expected: str) -> float:
    """1 if the answer's code runs to its end without an error.

    Args:
        limits: what it may use.
        answer: code, or text with code in fences.
        expected: not used.

    Returns:
        0 or 1; an answer without code has not run.
    """
    source = code_of(answer)
    return float(bool(source.strip()) and run_python(source, limits).passed)


def code_passes(limits: Limits, answer: str, expected: str) -> float:
    """1 if the expected answer's tests pass after the answer's code, as in HumanEval (Chen et al. 2021) and MBPP.

    Args:
        limits: what both together may use.
        answer: code, or text with code in fences.
        expected: code that raises an error if the answer is wrong, such as `assert add(1, 2) == 3`.

    Returns:
        0 or 1.
    """
    return float(run_python(f"{code_of(answer)}\n\n{code_of(expected)}\n", limits).passed)


def _has_tests(expected: str) -> bool:
    return re.search(r"^\s*(assert\b|.*\braise\b|.*\bunittest\b|check\()", code_of(expected), re.MULTILINE) is not None


def _metric(name: str, seconds: int) -> Metric:
    network = "without a network" if isolation() == "namespace" else "with Python's sockets blocked"
    limits = Limits(seconds=seconds)
    if name == "code_runs":
        explanation = f"answers whose Python code runs to its end in {seconds} s, {network}"
        return Metric("code runs", explanation, partial(code_runs, limits))
    explanation = f"answers whose Python code passes the expected answer's tests in {seconds} s, {network}"
    return Metric("code passes", explanation, partial(code_passes, limits), _has_tests)


def code_metric(name: str, seconds: str = "5", directory: Path = Path()) -> Metric:
    """A metric that runs code.

    Args:
        name: `code_runs` or `code_passes`.
        seconds: of the processor for each answer.
        directory: not used; every metric with a setting has it.

    Returns:
        The metric.

    Raises:
        UserError: the seconds are not a whole number from 1 on.
    """
    if not seconds.isdecimal() or not int(seconds):
        raise UserError(f"--metric {name}:{seconds} needs seconds for each answer, such as {name}:10.")
    return _metric(name, int(seconds))
