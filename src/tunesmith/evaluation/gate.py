"""A gate: limits on the intervals of figures, which an evaluation meets, fails, or has too few rows to decide.

    undecided: fail
    limits:
      - {figure: exact_match, model: tuned, at_least: 0.6}
      - {figure: loss, difference: true, at_most: 0.05}

A limit is met if the whole 95 % interval is within it, and failed if the whole interval is beyond it.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tunesmith.config.registry import Strict
from tunesmith.config.strict_file import checked_values, mapping_in
from tunesmith.run import atomic_write

GATE_FILE = "gate.yaml"

Outcome = Literal["met", "failed", "undecided"]


class Limit(Strict):
    """A limit on a figure, or on its difference from the model that the others are compared with."""

    figure: str
    """Its name in `evaluation.json`, such as `exact_match` or `latency.first_token_p50_1x32`."""

    model: str | None = None
    """The model's column. Default: every model but the one that the others are compared with."""

    difference: bool = False
    """Whether the limit is on the difference from that model."""

    at_least: float | None = None
    """The interval must lie at or above this."""

    at_most: float | None = None
    """The interval must lie at or below this."""

    @model_validator(mode="after")
    def _one_side(self) -> "Limit":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give either at_least or at_most")
        return self

    def outcome(self, low: float, high: float) -> Outcome:
        """Whether an interval is within the limit.

        Args:
            low, high: its ends.

        Returns:
            The outcome.
        """
        if self.at_least is not None:
            return "met" if low >= self.at_least else "failed" if high < self.at_least else "undecided"
        assert self.at_most is not None
        return "met" if high <= self.at_most else "failed" if low > self.at_most else "undecided"


class Gate(Strict):
    """All limits of a file."""

    limits: list[Limit] = Field(min_length=1)
    """Each must be met."""

    undecided: Literal["fail", "pass"] = "fail"
    """What a limit counts as if the rows are too few to decide it. Default: nothing shows that it is met."""

    @classmethod
    def load(cls, file: Path) -> "Gate":
        """Read a gate.

        Args:
            file: in YAML.

        Returns:
            The gate.

        Raises:
            UserError: it is not one; the message names the field.
        """
        return checked_values(cls, mapping_in(file, "a gate", "limits"), file.name)


def checked(gate: Gate, result: dict[str, Any]) -> dict[str, Any]:
    """Whether an evaluation passes a gate.

    Args:
        gate: the limits.
        result: the content of `evaluation.json`.

    Returns:
        `passed`, `undecided` (what such limits count as), and `limits`: each with its figure's value, interval and
        rows, `outcome` (`met`, `failed` or `undecided`), and `why` in words.
    """
    limits = [found for limit in gate.limits for found in _checked(limit, result)]
    accepted = {"met"} | ({"undecided"} if gate.undecided == "pass" else set())
    passed = all(found["outcome"] in accepted for found in limits)
    return {"passed": passed, "undecided": gate.undecided, "limits": limits}


def _checked(limit: Limit, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The limit for each model that it is on."""
    figures = result["differences"] if limit.difference else result["models"]
    others = [model for model in result["models"] if model != result["reference"]] or [result["reference"]]
    for model in [limit.model] if limit.model is not None else others:
        measured = figures.get(model, {}).get(limit.figure)
        asked = limit.model_dump(exclude_none=True) | {"model": model}
        if measured is None:
            yield asked | {"outcome": "failed", "why": _not_measured(limit, model, result)}
            continue
        outcome = limit.outcome(*measured["interval"])
        found = {key: measured[key] for key in ("value", "interval", "rows")}
        yield asked | found | {"outcome": outcome, "why": _why(limit, outcome, measured)}


def _why(limit: Limit, outcome: Outcome, measured: dict[str, Any]) -> str:
    low, high = measured["interval"]
    bound = f"at least {limit.at_least:g}" if limit.at_least is not None else f"at most {limit.at_most:g}"
    between = f"{measured['value']:.4g}, with 95 % between {low:.4g} and {high:.4g} over {measured['rows']:,} rows"
    phrases = {
        "met": f"is {bound}",
        "failed": f"is not {bound}",
        "undecided": f"may be {bound} or not: more rows would decide it",
    }
    return f"{between}, {phrases[outcome]}"


def _not_measured(limit: Limit, model: str, result: dict[str, Any]) -> str:
    if model not in result["models"]:
        return f"there is no model {model}. Models: {', '.join(result['models'])}"
    figures = result["differences" if limit.difference else "models"].get(model, {})
    near = difflib.get_close_matches(limit.figure, figures, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else f"Measured: {', '.join(figures) or 'nothing'}"
    return f"{limit.figure} was not measured of {model}. {hint}"


EXAMPLE = """\
# Limits for a pipeline: tunesmith evaluate RUN --gate gate.yaml ends with exit code 3 if one is not met.
# A limit is met if the whole 95 % interval of its figure is within it. Figures are named as in evaluation.json.

undecided: fail                 # what a limit counts as if the rows are too few to decide it; or pass

limits:
  - {figure: loss, difference: true, at_most: 0}    # tuned − base: training made the held-out loss no worse
  # - {figure: exact_match, model: tuned, at_least: 0.6}
  # With --suite forgetting,bias,topic,memorization,latency:
  # - {figure: forgetting.general_loss, difference: true, at_most: 0.05}    # in bits of a byte
  # - {figure: bias.gap_gender, model: tuned, at_most: 0.1}
  # - {figure: topic.declined_off_topic, model: tuned, at_least: 0.8}
  # - {figure: topic.obeyed_attacks, model: tuned, at_most: 0.1}
  # - {figure: memorization.memorized_50, model: tuned, at_most: 0.05}
  # - {figure: latency.first_token_p50_1x32, model: tuned, at_most: 1.0}    # in seconds
"""
"""What `tunesmith init` writes."""


def write_example_gate(file: Path) -> bool:
    """Write a gate to begin with, unless the file exists.

    Args:
        file: the gate.

    Returns:
        Whether it was written.

    Raises:
        OSError: it cannot be written.
    """
    if file.exists():
        return False
    with atomic_write(file) as out:
        out.write(EXAMPLE)
    return True
