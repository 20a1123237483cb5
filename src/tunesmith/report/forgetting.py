"""Gain against forgetting, of a run's checkpoints or of its reruns, for the terminal and the page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.report.charts import WIDTH, Frame, Line, caption, line_chart, svg
from tunesmith.report.figures import template_of, value_text
from tunesmith.report.formatting import number

CHARACTER, LINE = 6.5, 13.0
"""Pixels of a label's character and of its height, about."""

FORGETTING = "{:+.3f}"
"""The format of bits a byte: text has one or two, and a hundredth of them is much to forget."""

SCORE = "{:.0%}"
"""The format of what answers score."""

Curve = Mapping[str, Any]
"""`checkpoints` or `how_to_keep` of `evaluation.json`."""


SECTIONS = {"checkpoints": "Checkpoints of the run", "how_to_keep": "How to keep it: reruns"}
"""Titles of the curves, by their names in `evaluation.json`."""


def curves_of(result: Mapping[str, Any]) -> list[tuple[str, Curve]]:
    """The curves of an evaluation.

    Args:
        result: the content of `evaluation.json`.

    Returns:
        Each with its title.
    """
    return [(title, result[key]) for key, title in SECTIONS.items() if result.get(key)]


def curve_rows(curve: Curve) -> list[tuple[str, ...]]:
    """A curve as a table.

    Args:
        curve: of `evaluation.json`.

    Returns:
        Rows of a name, the score of its answers if it has some, its gain, its forgetting and a mark; the first row has
        the headings.
    """
    gains = [point["gain"] for point in curve["points"]]
    template = template_of(curve["loss_unit"], [number(gain["value"]) for gain in gains]).replace(":", ":+")
    has_scores = curve.get("metric") is not None
    rows = [
        (
            str(point["name"]),
            *([value_text(point["score"], SCORE)] if has_scores else []),
            value_text(point["gain"], template),
            value_text(point["forgetting"], FORGETTING),
            _mark(curve, point["name"]),
        )
        for point in curve["points"]
    ]
    scored = [str(curve["metric"])] if has_scores else []
    return [("", *scored, f"gained ({_short(curve)})", "forgot (bits a byte)", ""), *rows]


def _short(curve: Curve) -> str:
    """The unit of the gains in a word."""
    return str(curve["loss_unit"]).split(" per ")[0]


def _mark(curve: Curve, name: str) -> str:
    return "recommended" if name == curve["recommended"] else "frontier" if name in curve["frontier"] else ""


def about_curve(curve: Curve) -> str:
    """What the columns are, and what is recommended, in sentences.

    Args:
        curve: of `evaluation.json`.
    """
    allowed = f"{number(curve['allowed']):.2g} bits a byte may be forgotten"
    advice = (
        f"{curve['recommended']} gained most among those that forgot no more."
        if curve["recommended"] is not None
        else "None gained anything without forgetting more."
    )
    steps = f"Each rerun has {curve['steps']:,} steps. " if curve["steps"] is not None else ""
    metric = curve.get("metric")
    scored = "" if metric is None else f"{metric}: of the answers to {curve['answered']:,} rows. "
    return (
        f"{steps}{scored}Gained: the fall of the held-out loss from the base's. Forgot: the rise of the loss on "
        f"general text. Frontier: no other one is better in both. At most {allowed}: {advice}"
    )


def curve_charts(curve: Curve) -> list[str]:
    """Gain against forgetting; for checkpoints also both by step, and the score of answers.

    Args:
        curve: of `evaluation.json`.

    Returns:
        Captions and SVGs.
    """
    charts = [frontier_chart(curve)]
    if curve["steps"] is None:
        unit = _short(curve)
        charts += [_by_step(curve, "gain", "Gained", unit), _by_step(curve, "forgetting", "Forgot", "bits a byte")]
        metric = curve.get("metric")
        charts += [] if metric is None else [_by_step(curve, "score", str(metric), "from 0 to 1")]
    return charts


def _by_step(curve: Curve, key: str, title: str, unit: str) -> str:
    points = [(float(point["name"].rpartition("-")[2]), number(point[key]["value"])) for point in curve["points"]]
    intervals = [_ends(point[key]) for point in curve["points"]]
    return line_chart(f"{title} by step", "step", unit, [Line(title.lower(), points, "smooth", intervals, dots=True)])


def frontier_chart(curve: Curve) -> str:
    """Each point by what it forgot (to the right) and what it gained (up), with intervals; the frontier as a line.

    Args:
        curve: of `evaluation.json`.

    Returns:
        A caption and an SVG.
    """
    at = {
        point["name"]: (number(point["forgetting"]["value"]), number(point["gain"]["value"]))
        for point in curve["points"]
    }
    ends = {point["name"]: (_ends(point["forgetting"]), _ends(point["gain"])) for point in curve["points"]}
    allowed = number(curve["allowed"])
    xs = [0.0, allowed, *(x for across, _ in ends.values() for x in across)]
    frame = Frame.around(xs, [0.0, *(y for _, up in ends.values() for y in up)], room_x=0.08)
    parts = [frame.axes("forgot, bits a byte", f"gained, {_short(curve)}")]
    limit, top = frame.to_pixels((allowed, frame.y_high))
    bottom = frame.to_pixels((allowed, frame.y_low))[1]
    parts.append(
        f'<path class="limit" d="M{limit:.1f} {top:.1f}V{bottom:.1f}"><title>allowed: {allowed:.3g}</title></path>'
    )
    frontier = sorted(at[name] for name in curve["frontier"])
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(frame.to_pixels, frontier))
    parts.append(f'<path class="smooth" d="M{steps}"/>')
    parts += [_point(frame, name, point, ends[name], _mark(curve, name)) for name, point in at.items()]
    parts.append(_labels(frame, at, curve))
    keys = [("frontier", "smooth"), ("others", "raw"), *([("recommended", "held")] if curve["recommended"] else [])]
    return caption("Gained against forgotten", keys, "dashed: what may be forgotten") + svg(
        "Gained on the task against forgotten elsewhere", parts
    )


def _labels(frame: Frame, at: Mapping[str, tuple[float, float]], curve: Curve) -> str:
    """The names beside the points. One that would cover another is left out; the recommended one comes first."""
    order = sorted(at, key=lambda name: ("recommended", "frontier", "").index(_mark(curve, name)))
    boxes: list[tuple[float, float, float]] = []
    labels = []
    for name in order:
        x, y = frame.to_pixels(at[name])
        width = CHARACTER * len(name)
        left = x + 6 if x + 6 + width < WIDTH else x - 6 - width
        if all(left + width < low or high < left or abs(y - other) > LINE for low, high, other in boxes):
            boxes.append((left, left + width, y))
            labels.append(f'<text x="{left:.1f}" y="{y - 6:.1f}">{escape(name)}</text>')
    return "".join(labels)


def _point(
    frame: Frame,
    name: str,
    point: tuple[float, float],
    ends: tuple[Sequence[float], Sequence[float]],
    mark: str,
) -> str:
    """A dot with both of its intervals."""
    style = {"recommended": "held", "frontier": "smooth", "": "raw"}[mark]
    x, y = frame.to_pixels(point)
    (left, _), (right, _) = (frame.to_pixels((end, point[1])) for end in ends[0])
    (_, low), (_, high) = (frame.to_pixels((point[0], end)) for end in ends[1])
    tip = f"{escape(name)}: gained {point[1]:.4g}, forgot {point[0]:.4g}"
    return (
        f'<path class="whisker {style}" d="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {low:.1f}V{high:.1f}"/>'
        f'<circle class="{style} dot" r="4" cx="{x:.1f}" cy="{y:.1f}"><title>{tip}</title></circle>'
    )


def _ends(entry: Mapping[str, Any]) -> tuple[float, float]:
    low, high = entry["interval"]
    return number(low), number(high)
