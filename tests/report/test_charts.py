"""Charts are well-formed SVG, show their data, and report what they leave out."""

import math
import random
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.report.charts import HEIGHT, WIDTH, Line, bar_chart, interval_chart, line_chart, thinned
from tunesmith.report.curves import curves, smoothed

HOSTILE = '"><script>alert("x")</script>'
NUMBERS = st.floats(-1e9, 1e9) | st.just(math.nan) | st.just(math.inf)


def svg_of(chart: str) -> ElementTree.Element:
    match = re.search(r"<svg.*</svg>", chart, re.DOTALL)
    assert match is not None
    return ElementTree.fromstring(match[0])


@given(ys=st.lists(NUMBERS, min_size=1, max_size=80), zero=st.booleans())
def test_every_curve_stays_within_its_chart(ys: list[float], zero: bool) -> None:
    chart = line_chart("t", "x", "y", [Line("n", list(enumerate(ys)), "raw")], from_zero=zero)
    if not any(map(math.isfinite, ys)):
        assert chart == ""
        return
    for path in svg_of(chart).iter("path"):
        coordinates = [float(each) for each in re.findall(r"-?[\d.]+", path.attrib["d"])]
        assert all(0 <= x <= WIDTH for x in coordinates[::2])
        assert all(0 <= y <= HEIGHT for y in coordinates[1::2])


def test_names_are_escaped_and_charts_without_data_are_empty() -> None:
    lines = [Line(HOSTILE, [(0, 1), (1, 2)], "raw"), Line("b", [(0, 1)], "held", dots=True)]
    charts = [
        line_chart(HOSTILE, HOSTILE, HOSTILE, lines),
        bar_chart(HOSTILE, HOSTILE, HOSTILE, [(HOSTILE, 1.0)]),
        interval_chart(HOSTILE, HOSTILE, [(HOSTILE, 1.0, (0.0, 2.0), "base")]),
    ]
    assert all("<script" not in chart and svg_of(chart).attrib["aria-label"] for chart in charts)
    assert line_chart("t", "x", "y", [Line("n", [(0, math.nan)], "raw")]) == ""
    assert bar_chart("t", "x", "y", []) == interval_chart("t", "u", [("a", math.nan, (0, 1), "base")]) == ""


@pytest.mark.parametrize(
    ("labels", "shown"), [(["≤ 8", "≤ 16", "≤ 32"], 3), ([f"≤ {2**n:,}" for n in range(6, 20)], 5)]
)
def test_labels_of_bars_do_not_overlap(labels: list[str], shown: int) -> None:
    chart = bar_chart("Lengths", "characters", "rows", [(label, 1.0) for label in labels])
    assert sum(f">{label}</text>" in chart for label in labels) == shown


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    chart = line_chart("t", "x", "y", [Line("n", [(0, 1), (1, 2), (2, math.nan), (3, 1), (4, 2)], "raw")])
    path = next(path for path in svg_of(chart).iter("path"))
    assert path.attrib["d"].count("M") == 2


def test_a_spike_does_not_squeeze_the_curve_and_is_reported() -> None:
    points = [(float(step), 1 + step % 7 / 10) for step in range(500)]
    points[250] = (250.0, 1000.0)
    chart = line_chart("t", "x", "y", [Line("n", points, "raw")])
    assert "1 beyond the frame, drawn at its edge" in chart
    path = next(svg_of(chart).iter("path")).attrib["d"]
    heights = [float(each) for each in re.findall(r" ([-\d.]+)", path)]
    assert min(heights) >= 0
    assert sorted(heights)[1] < HEIGHT / 2


@given(length=st.integers(1, 5000), seed=st.integers(0, 99))
def test_thinning_keeps_the_highest_and_the_lowest(length: int, seed: int) -> None:
    draw = random.Random(seed)
    ys = [draw.gauss(0, 1) for _ in range(length)]
    kept = [y for _, y in thinned(list(enumerate(ys)), most=100)]
    assert len(kept) <= 102
    assert (min(kept), max(kept)) == (min(ys), max(ys))


def test_held_out_points_show_their_interval_and_value() -> None:
    held = [{"event": "evaluation", "step": step, "loss": 2.5, "loss_interval": [2.25, 2.75]} for step in (0, 10, 20)]
    root = svg_of(curves([], held, "nats")[0])
    assert len([path for path in root.iter("path") if "whisker" in path.attrib["class"]]) == 3
    tips = [title.text for title in root.iter("title")]
    assert tips == [f"held out, 95 % interval: 2.5 at step {step}" for step in (0, 10, 20)]


def test_smoothing_skips_values_that_are_not_finite() -> None:
    assert smoothed([(0, 2.0), (1, math.nan), (2, math.inf), (3, 2.0)]) == [(0, 2.0), (1, 2.0), (2, 2.0), (3, 2.0)]


def test_an_objectives_own_figures_have_charts_beside_the_loss() -> None:
    steps = [{"step": at, "loss": 1.0, "tokens": 5, "seconds": 1.0, "margin": 0.1 * at, "kl": 0.2} for at in (1, 2, 3)]
    held = [{"step": at, "loss": 1.0, "margin": 0.5 * at, "margin_interval": [0.0, 1.0 * at]} for at in (0, 3)]
    charts = curves(steps, held, "nats")
    titles = [re.findall(r"<figcaption[^>]*>.*?</figcaption>", chart, re.DOTALL)[0] for chart in charts]
    own = [title for title in titles if "Margin" in title or "Kl" in title]
    assert len(own) == 2
    assert "held out" in own[0]
    assert "held out" not in own[1]
    assert len(titles) == len({re.sub("<[^>]*>", "", title) for title in titles})
