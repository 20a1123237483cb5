"""Figures as text: decimals by size, percent and points, and what is said of differences that are not shown."""

from typing import Any

import pytest

from tunesmith.report.colors import BAD, GOOD
from tunesmith.report.figures import about_differences, difference_text, template_of, title_of, value_text
from tunesmith.report.table import evaluation_table


@pytest.mark.parametrize(
    ("unit", "value", "coarse", "fine"),
    [
        ("share", 0.345, "34%", "34.5%"),
        ("nats", 2.3456, "2.35", "2.346"),
        ("", 34.56, "34.6", "34.56"),
        ("", 1234.5, "1,234", "1,234.5"),
        ("seconds", 0.01234, "0.012", "0.0123"),
        ("", 0.0, "0.00", "0.000"),
    ],
)
def test_decimals_depend_on_the_size(unit: str, value: float, coarse: str, fine: str) -> None:
    assert template_of(unit, [value]).format(value) == coarse
    assert template_of(unit, [value], fine=True).format(value) == fine


def test_values_and_differences_have_their_interval() -> None:
    entry = {"value": 0.34, "interval": [0.3, 0.381]}
    assert value_text(entry, "{:.0%}") == "34% [30, 38]"
    assert difference_text(entry, "{:.0%}") == "+34% [+30, +38]"
    assert (value_text(None, "{:.2f}"), difference_text(None, "{:.2f}")) == ("–", "")
    assert title_of({"title": "loss", "unit": "nats"}, "x") == "loss (nats)"
    assert title_of({"title": "word overlap", "unit": "share"}, "x") == "word overlap"


def result(*models: str, **difference: Any) -> dict[str, Any]:
    entry = {"value": 0.5, "interval": [0.4, 0.6], "rows": 8}
    return {
        "rows": 8,
        "data": "rows of a.jsonl",
        "generated_rows": 8,
        "reference": "base",
        "figures": {"exact": {"title": "exact match", "unit": "share", "better": "higher"}},
        "models": {model: {"exact": entry} for model in ("base", *models)},
        "differences": {model: {"exact": {**entry, "rows_needed": None, **difference}} for model in models},
        "comparisons": len(models),
    }


def test_a_difference_that_is_not_shown_says_what_it_would_take() -> None:
    found = result("a", value=0.02, verdict="not shown", rows_needed=3200)
    assert about_differences(found).endswith(
        "No difference shown at this size: exact match (3,200 rows would be needed to show +2%)."
    )
    found = result("a", "b", "c", value=0, verdict="not shown")
    text = about_differences(found)
    assert "after Holm's correction for 3 comparisons." in text
    assert text.endswith("exact match of a, b and c (none in these rows).")
    found = result("a", value=0.001, verdict="not shown", rows_needed=None)
    assert "more than a million rows would be needed to show +0%" in about_differences(found)
    assert about_differences(result("a", verdict="better")) == "Differences in color are significant at 5 %."
    assert about_differences(result()) == ""


@pytest.mark.parametrize("models", [(), ("tuned",), ("a", "b")])
def test_a_table_has_each_model_and_color_only_for_differences_that_are_shown(models: tuple[str, ...]) -> None:
    for verdict, style in (("better", f"bold {GOOD}"), ("worse", f"bold {BAD}"), ("not shown", "")):
        table = evaluation_table(result(*models, verdict=verdict))
        cells = [cell for column in table.columns for cell in column.cells]
        styles = [str(cell.style) for cell in cells if not isinstance(cell, str) and "[+40, +60]" in cell.plain]
        assert styles == [style] * len(models)
        assert sum("50% [40, 60]" in str(cell) for cell in cells) == 1 + len(models)
