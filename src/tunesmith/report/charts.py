"""Plots as SVG: curves, dots with intervals, bars. Drawn from numbers alone; tooltips are `<title>`s, without scripts.

The charts are narrow, so that their text stays readable when a phone shows them at full width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tunesmith.report.ticks import round_ticks, tick_labels

WIDTH, HEIGHT = 390, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 24, 38
"""Margins around the frame, for labels."""

MOST_POINTS = 600
"""Points of a curve: more than the chart has pixels would only make the page larger."""

BESIDE = 7
"""Characters of a name that fit beside an interval; longer ones are above it."""

MOST_TIPS = 60
"""Points of a curve that show their value in a tooltip."""

Point = tuple[float, float]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve.

    Attributes:
        name: for the legend and the tooltips.
        points: (x, y), in order; a y that is not finite leaves a gap.
        style: a CSS class of the page: `raw`, `smooth` or `held`.
        intervals: (low, high) around each point, drawn as a whisker; empty for none.
        dots: whether each point is marked with a dot.
    """

    name: str
    points: Sequence[Point]
    style: str
    intervals: Sequence[Interval] = ()
    dots: bool = False


def line_chart(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, from_zero: bool = False, integer_x: bool = True
) -> str:
    """A caption and an SVG of the curves in one chart.

    Rare spikes of a `raw` curve may leave the frame; the caption gives their number.

    Args:
        title: caption and accessible name.
        x_label, y_label: of the axes, with units.
        lines: drawn in this order.
        from_zero: the y axis starts at 0.
        integer_x: ticks of the x axis are integers.

    Returns:
        Empty if no point is finite.
    """
    lines = [line for line in lines if any(math.isfinite(y) for _, y in line.points)]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for pair in line.intervals for y in pair if math.isfinite(y)]
    for line in lines:
        finite = [y for _, y in line.points if math.isfinite(y)]
        ys += without_spikes(finite) if line.style == "raw" else finite
    frame = Frame.around(xs, [*ys, 0.0] if from_zero else ys)
    beyond = sum(not frame.y_low <= y <= frame.y_high for line in lines for _, y in line.points if math.isfinite(y))
    parts = [frame.axes(x_label, y_label, least_x_step=1.0 if integer_x else 0.0)]
    parts += [part for line in lines for part in _curve(frame, line, x_label)]
    keys = [(line.name, line.style) for line in lines] if len(lines) > 1 else []
    note = f"{beyond:,} beyond the frame, drawn at its edge" if beyond else ""
    return caption(title, keys, note) + svg(f"{title}: {y_label} by {x_label}", parts)


CHARACTERS = 42
"""That labels beside each other have room for, with gaps."""


def bar_chart(title: str, x_label: str, y_label: str, bars: Sequence[tuple[str, float]]) -> str:
    """A caption and an SVG of labeled bars.

    Args:
        title: above them.
        x_label: what the bars stand for.
        y_label: what their heights are.
        bars: label and height of each.

    Returns:
        Empty if there are none.
    """
    if not bars:
        return ""
    frame = Frame.around([0, len(bars)], [0, *(value for _, value in bars)])
    parts = [frame.axes(x_label, y_label, x_ticks=False)]
    every = math.ceil(len(bars) * max(len(label) for label, _ in bars) / CHARACTERS) or 1
    for index, (label, value) in enumerate(bars):
        (x, y), (_, base) = frame.to_pixels((index + 0.08, value)), frame.to_pixels((index, 0))
        width = frame.to_pixels((index + 0.92, 0))[0] - x
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(0.0, base - y):.1f}">'
            f"<title>{escape(x_label)} {escape(label)}: {value:,.6g} {escape(y_label)}</title></rect>"
        )
        if index % every == 0:
            at = f'x="{x + width / 2:.1f}" y="{base + 15:.1f}" text-anchor="middle"'
            parts.append(f"<text {at}>{escape(label)}</text>")
    return caption(title) + svg(f"{title}: {y_label} by {x_label}", parts)


def interval_chart(
    title: str,
    unit: str,
    rows: Sequence[tuple[str, float, Interval, str]],
    scale: float = 1.0,
    decimals: int = 3,
    note: str = "",
) -> str:
    """A caption and an SVG with one dot and its interval per row, over a common axis.

    Args:
        title: caption and accessible name.
        unit: label of the axis.
        rows: (name, value, (low, high), CSS class).
        scale: factor for the values, for example 100 for percent.
        decimals: decimal places in the tooltips.
        note: an explanation beneath the title.

    Returns:
        Empty if nothing is finite.
    """
    rows = [row for row in rows if all(map(math.isfinite, (row[1], *row[2])))]
    if not rows:
        return ""
    values = [scale * each for _, value, interval, _ in rows for each in (value, *interval)]
    frame = Frame.around(values if any(values) else [0.0, 1.0], [0.0, 1.0], room_x=0.06)
    above = max(len(name) for name, *_ in rows) > BESIDE
    step = 36 if above else 24
    height = step * len(rows) + 46
    parts = []
    for x, label in _labeled(round_ticks(frame.x_low, frame.x_high)):
        at = frame.to_pixels((x, 0))[0]
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{height - 40}"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - 24}" text-anchor="middle">{label}</text>')
    for row, (name, value, interval, style) in enumerate(rows):
        y = (30 if above else 18) + step * row
        place = f'x="{LEFT}" y="{y - 12}"' if above else f'x="{LEFT - 8}" y="{y + 4}" text-anchor="end"'
        middle, low, high = (frame.to_pixels((scale * each, 0))[0] for each in (value, *interval))
        texts = [f"{scale * each:.{decimals}f}" for each in (value, *interval)]
        tip = f"<title>{escape(name)}: {texts[0]} {escape(unit)}, 95 %: {texts[1]} to {texts[2]}</title>"
        parts.append(
            f'<text {place}>{escape(name)}</text><g class="{style}">{tip}'
            f'<path class="span" d="M{low:.1f} {y}H{high:.1f}"/><circle cx="{middle:.1f}" cy="{y}" r="5"/></g>'
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{height - 6}" text-anchor="middle">{escape(unit)}</text>')
    return caption(title, note=note) + svg(title, parts, height)


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps values to pixels."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float], room_x: float = 0.0) -> "Frame":
        """A little larger than the range of the values, but starting exactly at 0 if they do."""
        x_low, x_high = min(xs), max(xs)
        beside = (x_high - x_low) * room_x or (abs(x_high) * 0.1 or 1.0 if x_high == x_low else 0.0)
        y_low, y_high = min(ys), max(ys)
        above = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
        return cls(x_low - beside, x_high + beside, y_low if y_low == 0 else y_low - above, y_high + above)

    def to_pixels(self, point: Point) -> Point:
        """Pixels (x, y) of a point; points beyond the frame are moved to its edge."""
        across = (point[0] - self.x_low) / (self.x_high - self.x_low)
        up = min(1.0, max(0.0, (point[1] - self.y_low) / (self.y_high - self.y_low)))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str, x_ticks: bool = True, least_x_step: float = 0.0) -> str:
        parts = []
        for y, label in _labeled(round_ticks(self.y_low, self.y_high)):
            at = self.to_pixels((self.x_low, y))[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
        for x, label in _labeled(round_ticks(self.x_low, self.x_high, least=least_x_step)) if x_ticks else ():
            at = self.to_pixels((x, self.y_low))[0]
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{label}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
        parts.append(f'<text x="4" y="13">{escape(y_label)}</text>')
        return "".join(parts)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """About `most` points or fewer: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    width = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        finite = [point for point in stretch if math.isfinite(point[1])] or [stretch[0]]
        ends = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def without_spikes(values: Sequence[float]) -> list[float]:
    """All values except those of the top percent that would squeeze the rest into the lower half of the frame."""
    ordered = sorted(values)
    usual = ordered[: max(2, math.ceil(len(ordered) * 0.99))]
    span = usual[-1] - usual[0]
    return [value for value in ordered if value <= usual[-1] + span] if span > 0 else ordered


def _curve(frame: Frame, line: Line, x_label: str) -> list[str]:
    parts = []
    for (x, _), interval in zip(line.points, line.intervals, strict=False):
        if all(map(math.isfinite, interval)):
            (at, low), (_, high) = (frame.to_pixels((x, each)) for each in interval)
            caps = f"M{at - 3:.1f} {low:.1f}h6M{at - 3:.1f} {high:.1f}h6"
            parts.append(f'<path class="whisker {line.style}" d="M{at:.1f} {low:.1f}V{high:.1f}{caps}"/>')
    pen, path = "M", []
    for point in thinned(line.points):
        if math.isfinite(point[1]):
            at, height = frame.to_pixels(point)
            path.append(f"{pen}{at:.1f} {height:.1f}")
        pen = "L" if math.isfinite(point[1]) else "M"
    parts.append(f'<path class="{line.style}" d="{"".join(path)}"/>')
    return [*parts, *_points(frame, line, x_label)]


def _points(frame: Frame, line: Line, x_label: str) -> list[str]:
    """Visible dots if `line.dots` or if the curve is a single point; otherwise invisible ones, for the tooltips."""
    finite = [point for point in line.points if math.isfinite(point[1])]
    visible = line.dots or len(finite) == 1
    if line.style == "raw" and not visible:
        return []
    look = f'class="{line.style} dot" r="2.6"' if visible else 'class="hit" r="7"'
    parts = []
    for x, y in finite[:: 1 if visible else math.ceil(len(finite) / MOST_TIPS)]:
        at, height = frame.to_pixels((x, y))
        tip = f"{escape(line.name)}: {y:.4g} at {escape(x_label)} {x:,.10g}"
        parts.append(f'<circle {look} cx="{at:.1f}" cy="{height:.1f}"><title>{tip}</title></circle>')
    return parts


def _labeled(ticks: Sequence[float]) -> list[tuple[float, str]]:
    return list(zip(ticks, tick_labels(ticks), strict=True))


def caption(title: str, keys: Sequence[tuple[str, str]] = (), note: str = "") -> str:
    """A chart's caption.

    Args:
        title: of the chart.
        keys: names and CSS classes, for the legend.
        note: an explanation.

    Returns:
        HTML.
    """
    legend = "".join(f'<span class="key {style}">{escape(name)}</span>' for name, style in keys)
    aside = f'<span class="note">{escape(note)}</span>' if note else ""
    return f"<figcaption><b>{escape(title)}</b>{legend}{aside}</figcaption>"


def svg(title: str, parts: Sequence[str], height: int = HEIGHT) -> str:
    """A chart.

    Args:
        title: its accessible name.
        parts: what is drawn.
        height: in pixels.

    Returns:
        SVG.
    """
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
