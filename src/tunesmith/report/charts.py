"""Plots as SVG: lines, an interval around points, bars. Drawn from numbers alone, readable without scripts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 40

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve.

    Attributes:
        name: for the legend.
        points: (x, y), in order.
        style: a CSS class of the page: `raw`, `smooth` or `held`.
        intervals: (low, high) around each point, drawn as a whisker; empty for none.
    """

    name: str
    points: Sequence[Point]
    style: str
    intervals: Sequence[tuple[float, float]] = ()


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], from_zero: bool = False) -> str:
    """An SVG of the curves over a common frame; points that are not finite are left out. Empty where none is left."""
    lines = [_finite(line) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for pair in line.intervals for y in pair]
    frame = Frame.around(xs, [*ys, 0.0] if from_zero else _without_outliers(ys))
    parts = [frame.axes(x_label, y_label)]
    for line in lines:
        places = [frame.place(point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{line.style}" points="{path}"><title>{escape(line.name)}</title></polyline>')
        for (x, y), (at_x, at_y) in zip(line.points, places, strict=True) if len(places) <= 60 else ():
            tip = f"{escape(line.name)}: {y:.4g} at {x:,.6g}"
            parts.append(
                f'<circle class="{line.style}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="3"><title>{tip}</title></circle>'
            )
        for (x, _), (low, high) in zip(line.points, line.intervals, strict=False):
            (at_x, bottom), (_, top) = frame.place((x, low)), frame.place((x, high))
            parts.append(f'<line class="whisker" x1="{at_x:.1f}" x2="{at_x:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"/>')
    if len(lines) > 1:
        parts.append(_legend(lines))
    return _svg(title, parts)


def bar_chart(title: str, x_label: str, y_label: str, bars: Sequence[tuple[str, float]]) -> str:
    """An SVG of bars with a label beneath each. Empty where there are none."""
    if not bars:
        return ""
    frame = Frame.around([0, len(bars)], [0, *(value for _, value in bars)])
    parts = [frame.axes(x_label, y_label, x_ticks=False)]
    every = math.ceil(len(bars) / 10)
    for place, (label, value) in enumerate(bars):
        (x, y), (_, base) = frame.place((place + 0.08, value)), frame.place((place, 0))
        width = frame.place((place + 0.92, 0))[0] - x
        tip = f"{escape(label)}: {value:,.6g}"
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(0.0, base - y):.1f}">'
            f"<title>{tip}</title></rect>"
        )
        if place % every == 0:
            at = f'x="{x + width / 2:.1f}" y="{base + 15:.1f}" text-anchor="middle"'
            parts.append(f'<text class="tick" {at}>{escape(label)}</text>')
    return _svg(title, parts)


@dataclass(frozen=True, slots=True)
class Frame:
    """From values to pixels."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float]) -> "Frame":
        y_low, y_high = min(ys), max(ys)
        room = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
        low = y_low if y_low == 0 else y_low - room
        return cls(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, low, y_high + room)

    def place(self, point: Point) -> Point:
        """Within the frame: what lies beyond it is drawn on its edge."""
        across = (point[0] - self.x_low) / (self.x_high - self.x_low)
        up = min(1.0, max(0.0, (point[1] - self.y_low) / (self.y_high - self.y_low)))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str, x_ticks: bool = True) -> str:
        parts = []
        for y in round_ticks(self.y_low, self.y_high):
            at = self.place((self.x_low, y))[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_figure(y)}</text>')
        for x in round_ticks(self.x_low, self.x_high) if x_ticks else ():
            at = self.place((x, self.y_low))[0]
            parts.append(
                f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_figure(x)}</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
        parts.append(f'<text class="label" x="{LEFT - 44}" y="14">{escape(y_label)}</text>')
        return "".join(parts)


def round_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 × 10ⁿ within [low, high], about `wanted` of them."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _figure(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _finite(line: Line) -> Line:
    kept = [place for place, (x, y) in enumerate(line.points) if math.isfinite(x) and math.isfinite(y)]
    intervals = [line.intervals[place] for place in kept] if line.intervals else []
    return Line(line.name, [line.points[place] for place in kept], line.style, intervals)


def _without_outliers(values: Sequence[float]) -> list[float]:
    """All but the highest hundredth, where those would squeeze the rest into the lowest half of the frame."""
    ordered = sorted(values)
    usual = ordered[: max(2, math.ceil(len(ordered) * 0.99))]
    return usual if ordered[-1] - ordered[0] > 2 * (usual[-1] - usual[0]) > 0 else ordered


def _legend(lines: Sequence[Line]) -> str:
    parts = []
    x = WIDTH - RIGHT
    for line in reversed(lines):
        x -= 7 * len(line.name) + 30
        parts.append(f'<line class="{line.style}" x1="{x}" x2="{x + 18}" y1="10" y2="10"/>')
        parts.append(f'<text class="tick" x="{x + 22}" y="14">{escape(line.name)}</text>')
    return "".join(parts)


def _svg(title: str, parts: Sequence[str]) -> str:
    caption = f"<figcaption>{escape(title)}</figcaption>"
    return (
        f'{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
