"""Differences: paired by row, corrected for how many there are, and what it would take to show them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tunesmith.evaluation.figures import summary
from tunesmith.evaluation.measured import Measured, mean_of, ratio_of
from tunesmith.evaluation.statistics import holm, paired, rows_needed


def figure(values: NDArray[np.float64], names: list[str] | None = None) -> Measured:
    return mean_of(values, names or [f"row {number}" for number in range(len(values))], "score", "a score")


def test_holm_multiplies_the_smallest_by_all_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979, by hand
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_figures_are_paired_by_the_names_of_rows() -> None:
    a = figure(np.array([0.1, 0.5, 0.9]), ["x", "y", "z"])
    b = figure(np.array([0.9, 0.2, 0.7]), ["z", "x", "w"])
    found = paired(a, b)
    assert found is not None
    assert (found.value, found.rows) == (pytest.approx(((0.2 - 0.1) + (0.9 - 0.9)) / 2), 2)
    assert paired(a, figure(np.array([1.0]), ["v"])) is None


def test_a_difference_of_ratios_is_of_sums_over_counts() -> None:
    names = [f"row {number}" for number in range(200)]
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 40, 200)
    before = counts * draw.gamma(4, 0.5, 200)
    after = before - counts * draw.normal(0.1, 0.05, 200)
    a, b = (ratio_of(sums, counts, names, "loss", "loss") for sums in (before, after))
    found = paired(a, b)
    assert found is not None
    assert found.value == pytest.approx((after.sum() - before.sum()) / counts.sum())
    assert found.interval[0] < found.value < found.interval[1] < 0
    assert found.p_value < 1e-6


def test_the_rows_that_are_needed_show_the_difference_in_four_of_five_samples() -> None:
    draw = np.random.default_rng(1)
    population = np.clip(draw.normal(0.03, 0.3, 100_000), -1, 1)
    truth = population.mean()
    pilot = population[:300] - population[:300].mean() + truth  # the true difference, with a sample's spread
    needed = rows_needed(paired(figure(np.zeros(300)), figure(pilot)))  # type: ignore[arg-type]
    assert needed is not None
    by_formula = (1.959964 + 0.841621) ** 2 * population.var() / truth**2
    assert needed == pytest.approx(by_formula, rel=0.2)
    shown = 0
    for _ in range(100):
        changes = draw.choice(population, needed)
        shown += abs(changes.mean()) / (changes.std() / needed**0.5) > 1.959964
    assert 65 <= shown <= 93


def test_no_difference_at_all_needs_no_number_of_rows() -> None:
    same = paired(figure(np.array([0.0, 1.0, 1.0])), figure(np.array([0.0, 1.0, 1.0])))
    assert same is not None
    assert (rows_needed(same), same.p_value) == (None, 1.0)


def test_a_summary_says_which_differences_are_shown() -> None:
    draw = np.random.default_rng(2)
    base = draw.random(100)
    models = {
        "base": {"a": figure(base), "b": figure(base)},
        "one": {"a": figure(base + 0.2 + 0.1 * draw.normal(size=100)), "b": figure(base)},
        "two": {"a": figure(base - 0.2 + 0.1 * draw.normal(size=100)), "b": figure(base + 0.3 * draw.normal(size=100))},
    }
    found = summary(models, "base")
    assert found["comparisons"] == 4
    verdicts = {
        model: {name: entry["verdict"] for name, entry in own.items()} for model, own in found["differences"].items()
    }
    assert verdicts == {"one": {"a": "better", "b": "not shown"}, "two": {"a": "worse", "b": "not shown"}}
    assert "rows_needed" not in found["differences"]["one"]["a"]
    assert found["differences"]["one"]["b"]["rows_needed"] is None
    assert found["differences"]["two"]["b"]["rows_needed"] > 100
