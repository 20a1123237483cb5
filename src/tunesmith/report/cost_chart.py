"""Quality against cost: a dot with its interval for each way, cost on a logarithmic axis."""

import math
from collections.abc import Sequence
from html import escape

from tunesmith.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Frame, caption, svg
from tunesmith.report.ticks import round_ticks, tick_labels

Dot = tuple[str, float, float, tuple[float, float]]
"""A name, a cost, a value and its interval."""

LABEL_HEIGHT = 13
"""Pixels between labels, so that none covers another."""


def cost_chart(title: str, x_label: str, y_label: str, dots: Sequence[Dot], marked: str = "") -> str:
    """A caption and an SVG.

    Args:
        title: caption and accessible name.
        x_label, y_label: of the axes, with units.
        dots: of the ways.
        marked: the way that stands out.

    Returns:
        Empty if there are no dots.
    """
    if not dots:
        return ""
    least = min((cost for _, cost, *_ in dots if cost > 0), default=1.0)
    xs = [math.log10(max(cost, least / 10)) for _, cost, *_ in dots]
    ys = [end for *_, interval in dots for end in interval]
    frame = Frame.around([min(xs) - 0.15, max(xs) + 0.45], [min(0.0, *ys), *ys])
    parts = _axes(frame, x_label, y_label)
    labels = _label_heights(frame, xs, dots)
    for x, (name, cost, value, (low, high)), label in zip(xs, dots, labels, strict=True):
        style = "tuned" if name == marked else "base"
        (at, y), (_, top), (_, bottom) = (frame.to_pixels((x, each)) for each in (value, high, low))
        tip = f"<title>{escape(name)}: {value:.3g} [{low:.3g}, {high:.3g}] at {cost:.4g}</title>"
        parts.append(
            f'<g class="{style}">{tip}<path class="span" d="M{at:.1f} {top:.1f}V{bottom:.1f}"/>'
            f'<circle cx="{at:.1f}" cy="{y:.1f}" r="5"/></g>'
            f'<text x="{at + 9:.1f}" y="{label:.1f}">{escape(name)}</text>'
        )
    return caption(title) + svg(f"{title}: {y_label} by {x_label}", parts)


def _axes(frame: Frame, x_label: str, y_label: str) -> list[str]:
    parts = []
    ticks = round_ticks(frame.y_low, frame.y_high)
    for y, label in zip(ticks, tick_labels(ticks), strict=True):
        at = frame.to_pixels((frame.x_low, y))[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    for exponent in range(math.floor(frame.x_low), math.ceil(frame.x_high) + 1):
        for factor in (1, 2, 5):
            x = exponent + math.log10(factor)
            if frame.x_low <= x <= frame.x_high:
                at = frame.to_pixels((x, frame.y_low))[0]
                label = f"{factor * 10.0**exponent:,.10g}"
                parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{label}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="4" y="13">{escape(y_label)}</text>')
    return parts


def _label_heights(frame: Frame, xs: Sequence[float], dots: Sequence[Dot]) -> list[float]:
    """(dots,) where each label is: beside its dot, or above the label below it."""
    heights = [frame.to_pixels((x, value))[1] + 4 for x, (_, _, value, _) in zip(xs, dots, strict=True)]
    below = HEIGHT - BOTTOM - 4.0 + LABEL_HEIGHT
    for index in sorted(range(len(dots)), key=heights.__getitem__, reverse=True):
        heights[index] = below = min(heights[index], below - LABEL_HEIGHT)
    return heights
