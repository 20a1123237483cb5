"""Gain against forgetting in the terminal and on the page: marks, labels that can be read, charts by step."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tunesmith.report.comparison import compared
from tunesmith.report.forgetting import about_curve, curve_charts, curve_rows, frontier_chart
from tunesmith.report.html import write_evaluation_page


def curve(points: dict[str, tuple[float, float]], recommended: str | None, frontier: list[str]) -> dict[str, Any]:
    def entry(value: float) -> dict[str, Any]:
        return {"value": value, "interval": [value - 0.01, value + 0.01]}

    described = [{"name": name, "gain": entry(y), "forgetting": entry(x)} for name, (x, y) in points.items()]
    unit = "nats per loss token"
    return {
        "points": described, "recommended": recommended, "frontier": frontier, "allowed": 0.02, "loss_unit": unit,
        "steps": None,
    }  # fmt: skip


POINTS = {"step-000010": (0.001, 0.5), "step-000020": (0.01, 1.0), "step-000030": (0.0101, 1.001)}
CURVE = curve(POINTS, "step-000020", ["step-000010", "step-000020"])


def test_rows_have_signed_figures_and_marks() -> None:
    heading, *rows = curve_rows(CURVE)
    assert heading == ("", "gained (nats)", "forgot (bits a byte)", "")
    assert rows[0] == ("step-000010", "+0.50 [+0.49, +0.51]", "+0.001 [-0.009, +0.011]", "frontier")
    assert [row[3] for row in rows] == ["frontier", "recommended", ""]
    assert "step-000020 gained most among those that forgot no more" in about_curve(CURVE)
    assert "None gained anything without forgetting more" in about_curve({**CURVE, "recommended": None})


def answered() -> dict[str, Any]:
    """The curve with a score of answers at each point."""
    scores = [{"value": value, "interval": [value - 0.1, value + 0.1]} for value in (0.25, 0.5, 0.75)]
    points = [point | {"score": score} for point, score in zip(CURVE["points"], scores, strict=True)]
    return {**CURVE, "points": points, "metric": "word overlap (ROUGE-L)", "answered": 8}


def test_answers_have_a_column_and_a_chart_where_there_are_some() -> None:
    heading, first, *_ = curve_rows(answered())
    assert heading[:3] == ("", "word overlap (ROUGE-L)", "gained (nats)")
    assert first[:3] == ("step-000010", "25% [15, 35]", "+0.50 [+0.49, +0.51]")
    assert about_curve(answered()).startswith("word overlap (ROUGE-L): of the answers to 8 rows. Gained: ")
    chart = curve_charts(answered())[3]
    assert "word overlap (ROUGE-L) by step" in chart
    assert "0.75" in chart


def test_every_point_is_drawn_and_no_label_covers_another() -> None:
    chart = frontier_chart(CURVE)
    ElementTree.fromstring(chart[chart.index("<svg") :])
    assert re.findall(r'<circle class="(\w+) dot"', chart) == ["smooth", "held", "raw"]
    assert "step-000030: gained 1.001, forgot 0.0101" in chart
    labels = re.findall(r">(step-\d+)</text>", chart)
    assert labels == ["step-000020", "step-000010"], "the third point is almost at the recommended one"
    right, *_ = (float(x) for x in re.findall(r'<text x="([\d.]+)"[^>]*>step-000020', chart))
    assert right < 390 - 11 * 6.5, "a label at the right edge is beside its point, to the left"


def test_only_checkpoints_have_charts_by_step() -> None:
    assert len(curve_charts(CURVE)) == 3
    reruns = curve({"the run": (0.0, 1.0), "rate 0.1": (0.1, 2.0)}, None, []) | {"steps": 50}
    assert len(curve_charts(reruns)) == 1
    assert about_curve(reruns).startswith("Each rerun has 50 steps.")


def test_the_page_names_checkpoints_as_their_directories_are_called() -> None:
    shown = compared({"figures": {}, "models": {"base": {}, "tuned": {}}, "samples": [], "checkpoints": CURVE})
    (section,) = shown.curves
    assert section.rows[1] == ("step-000010", "+0.50 [+0.49, +0.51]", "+0.001 [−0.009, +0.011]", "frontier")


@pytest.mark.parametrize("has_scores", [False, True])
def test_the_page_has_every_cell_of_a_curve(has_scores: bool, tmp_path: Path) -> None:
    shown = answered() if has_scores else CURVE
    result = {"figures": {}, "models": {"base": {}, "tuned": {}}, "samples": [], "checkpoints": shown}
    (tmp_path / "evaluation.json").write_text(json.dumps(result), encoding="utf-8")
    page = write_evaluation_page(tmp_path).read_text(encoding="utf-8")
    heading, *rows = ([cell.replace("-", "−") for cell in row[1:]] for row in curve_rows(shown))
    for row in rows:
        cells = "".join(f'<td class="n">{cell}</td>' for cell in row[:-1])
        assert f'{cells}<td class="mark">{row[-1]}</td>' in page
    assert all(f'<th class="n">{title}</th>' in page for title in heading if title)
