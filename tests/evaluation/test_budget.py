"""A budget of time: how it is written, and how many rows it allows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import UserError
from tunesmith.evaluation.budget import Budget, seconds_of
from tunesmith.evaluation.compare import evaluate


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5h", 5400), (" 2 min ", 120)])
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "ten minutes", "0s", "-1s", "1d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a time. Write 90s, 10min or 1.5h"):
        seconds_of(text)


def test_a_long_time_allows_all_rows_and_a_short_one_a_few(tiny_model: Path, write_rows: Callable[..., Path]) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 2, "data": write_rows(40)}
    assert evaluate(tiny_model, None, budget="1h", **asked)["generated_rows"] == 40
    assert evaluate(tiny_model, 12, budget="1h", **asked)["generated_rows"] == 12
    assert evaluate(tiny_model, **asked)["budget"] is None


def test_what_is_left_is_divided_among_the_models() -> None:
    # 100 s: 10 to load, 4 for 8 answers, 20 to load two models again; 33 for each model at half a second an answer
    assert Budget.of(100, 10, 4, 8, 2) == Budget(100, 0.5, 66)
    assert Budget.of(3, 10, 4, 8, 2).rows == 8, "a few rows in any case"
