"""A summary of several models: which differences are shown after the correction, and what would show others."""

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluation.summary import summary
from tunesmith.statistics.measured import Measured, mean_of


def figure(values: NDArray[np.float64], names: list[str] | None = None) -> Measured:
    return mean_of(values, names or [f"row {number}" for number in range(len(values))], "score", "a score")


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
