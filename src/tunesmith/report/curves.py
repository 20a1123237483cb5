"""Charts of a run, from its events: loss, learning rate, gradient norm, speed, and the lengths of its examples."""

import math
from collections.abc import Sequence

from tunesmith.report.charts import Line, Point, bar_chart, line_chart
from tunesmith.report.formatting import number
from tunesmith.run import Event

OF_EVERY_STEP = frozenset(
    {
        "loss", "grad_norm", "learning_rate", "step", "total_steps", "tokens", "loss_tokens", "loss_tokens_by_source",
        "seconds", "seconds_left", "time",
    }
)  # fmt: skip
"""Figures of `step` events that have a chart of their own, or none."""

SMOOTHED_SHARE = 0.03
"""Fraction of the run over which the loss is smoothed."""


def curves(steps: Sequence[Event], evaluations: Sequence[Event], unit: str) -> list[str]:
    """The charts that have data, by optimizer step.

    Args:
        steps: `step` events.
        evaluations: `evaluation` events.
        unit: of the loss.
    """
    losses = _points(steps, "loss")
    is_mix = any("loss_tokens_by_source" in event for event in steps)
    each_step = "each step, all sources" if is_mix else "each step"
    held_out = Line(
        "held out, 95 % interval",
        _points(evaluations, "loss"),
        "held",
        [_interval(event.get("loss_interval")) for event in evaluations if _at(event) is not None],
        dots=True,
    )
    speeds = [
        (at, number(event.get("tokens")) / (number(event.get("seconds")) or math.nan))
        for event in steps
        if (at := _at(event)) is not None
    ]
    charts = [
        line_chart(
            "Loss",
            "step",
            unit,
            [Line(each_step, losses, "raw"), Line("smoothed", smoothed(losses), "smooth"), held_out],
        ),
        line_chart(
            "Learning rate",
            "step",
            "of AdamW, after warmup and schedule",
            [Line("learning rate", _points(steps, "learning_rate"), "smooth")],
            from_zero=True,
        ),
        _raw_and_smoothed("Gradient norm", "norm before clipping", _points(steps, "grad_norm")),
        _raw_and_smoothed("Speed", "non-padding tokens per second", speeds),
        *(_of_objective(name, steps, evaluations) for name in _other_figures(steps, evaluations)),
    ]
    return [chart for chart in charts if chart]


def _other_figures(steps: Sequence[Event], evaluations: Sequence[Event]) -> list[str]:
    """The names of the figures that the objective reports of its steps or of held-out rows, beside the loss."""
    of_rows = [name for event in evaluations for name in event if f"{name}_interval" in event]
    of_steps = [name for event in steps for name, value in event.items() if isinstance(value, int | float)]
    return [name for name in dict.fromkeys([*of_rows, *of_steps]) if name not in OF_EVERY_STEP]


def _of_objective(name: str, steps: Sequence[Event], evaluations: Sequence[Event]) -> str:
    points = [point for point in _points(steps, name) if math.isfinite(point[1])]
    with_it = [event for event in evaluations if name in event and _at(event) is not None]
    intervals = [_interval(event.get(f"{name}_interval")) for event in with_it]
    lines = [
        Line("each step", points, "raw"),
        Line("smoothed", smoothed(points), "smooth"),
        Line("held out, 95 % interval", _points(with_it, name), "held", intervals, dots=True),
    ]
    title = name.replace("_", " ").replace("/", ", ")
    return line_chart(title[:1].upper() + title[1:], "step", "", [line for line in lines if line.points])


def lengths(data: Event) -> str:
    """A histogram of the examples' lengths; empty if the event has none."""
    bars = [(f"{edge:,}", float(examples)) for edge, examples in data.get("length_histogram", ())]
    return bar_chart("Lengths of the examples", "tokens, up to", "examples", bars)


def smoothed(points: Sequence[Point], share: float = SMOOTHED_SHARE) -> list[Point]:
    """An exponential moving average over about a share of the points; values that are not finite do not change it."""
    weight = 1 / max(1, round(len(points) * share))
    averages: list[Point] = []
    mean = math.nan
    for x, y in points:
        if math.isfinite(y):
            mean = y if math.isnan(mean) else mean + weight * (y - mean)
        averages.append((x, mean))
    return averages


def _raw_and_smoothed(title: str, unit: str, points: Sequence[Point]) -> str:
    lines = [Line("each step", points, "raw"), Line("smoothed", smoothed(points), "smooth")]
    return line_chart(title, "step", unit, lines, from_zero=True)


def _points(events: Sequence[Event], name: str) -> list[Point]:
    return [(at, number(event.get(name))) for event in events if (at := _at(event)) is not None]


def _at(event: Event) -> float | None:
    at = number(event.get("step"))
    return at if math.isfinite(at) else None


def _interval(ends: Sequence[object] | None) -> tuple[float, float]:
    low, high = ends or (math.nan, math.nan)
    return number(low), number(high)
