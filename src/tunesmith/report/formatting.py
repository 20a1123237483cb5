"""Formats quantities for people. Missing values are `?`; values that are not finite are `nan` or `inf`."""

import math
from collections.abc import Mapping
from typing import Any

LOSS_UNIT = "nats per loss token"
"""Unit of the loss of a run whose events do not give it."""


def number(value: Any) -> float:
    """A metric of `metrics.jsonl` as a float: NaN and infinities are strings there; a missing value is NaN."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def figure(value: Any, template: str = "{:.3f}") -> str:
    """The number in a format, for example `2.346`."""
    if value is None:
        return "?"
    parsed = number(value)
    return template.format(parsed) if math.isfinite(parsed) else str(parsed)


def size(value: Any) -> str:
    """Bytes: `2.06 GB` (10⁹), `340 MB`."""
    return (
        figure(number(value) / 1e9, "{:.2f} GB") if number(value) >= 999.5e6 else _or_unknown(value, 1e6, "{:.0f} MB")
    )


def sizes(parts: Mapping[str, Any]) -> str:
    """Bytes by part, the largest first: `weights 2.06 GB, program 340 MB`."""
    return ", ".join(f"{name} {size(held)}" for name, held in sorted(parts.items(), key=lambda part: -number(part[1])))


def durations(parts: Mapping[str, Any]) -> str:
    """Seconds by part, the longest first: `training 3 min 20 s, evaluation 12 s`."""
    longest_first = sorted(parts.items(), key=lambda part: -number(part[1]))
    return ", ".join(f"{name} {duration(seconds)}" for name, seconds in longest_first)


def count(value: Any) -> str:
    """`873`, `12,400`, `1.2 M`, `7.24 B`."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number(value) >= unit * 0.9995:
            return figure(number(value) / unit, f"{{:.3g}} {name}")
    return _or_unknown(value, 1, "{:,.0f}")


def duration(value: Any) -> str:
    """Seconds: `4.2 s`, `45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = number(value)
    if not math.isfinite(seconds):
        return "?"
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f} s" if 0 < seconds < 9.95 else f"{rounded} s"
    minutes, rest = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def off_by(predicted: Any, measured: Any) -> str:
    """How far the measured value is from the predicted one: `+4%`, `−12%`; from double on `3.1 times`."""
    before, after = number(predicted), number(measured)
    if not (math.isfinite(before) and math.isfinite(after) and before > 0):
        return ""
    return f"{after / before:,.1f} times" if after >= 2 * before else f"{after / before - 1:+.0%}".replace("-", "−")


def _or_unknown(value: Any, unit: float, template: str) -> str:
    return template.format(number(value) / unit) if math.isfinite(number(value)) else "?"


def describe_base(start: Mapping[str, Any]) -> str:
    """`llama, 7.24 B parameters in nf4`, of a `start` event."""
    stored = start.get("weights")
    precision = f" in {stored}" if stored not in (None, start.get("precision"), "float32", "bfloat16") else ""
    return f"{start.get('base', '?')}, {count(start.get('parameters'))} parameters{precision}"


def describe_method(start: Mapping[str, Any]) -> str:
    """`lora, which trains 40 M parameters (0.5%)`, of a `start` event."""
    trained, total = start.get("trained_parameters"), start.get("parameters")
    share = figure(100 * number(trained) / number(total), " ({:.3g}%)") if total and trained is not None else ""
    return f"{start.get('method', '?')}, which trains {count(trained)} parameters{share}"
