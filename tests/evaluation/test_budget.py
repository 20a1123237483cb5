"""A budget of time: how it is written, and how many rows it allows."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tunesmith.errors import UserError
from tunesmith.evaluation.budget import Cost, rows_within, seconds_of
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.report.table import evaluation_table
from tunesmith.statistics.measured import Measured, mean_of


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5h", 5400), (" 2 min ", 120)])
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "ten minutes", "0s", "-1s", "1d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a time. Write 90s, 10min or 1.5h"):
        seconds_of(text)


@pytest.mark.long
def test_a_long_time_allows_all_rows_and_a_short_one_a_few(tiny_model: Path, write_rows: Callable[..., Path]) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 2, "data": write_rows(40)}
    assert evaluate(tiny_model, None, budget="1h", **asked)["generated_rows"] == 40
    assert evaluate(tiny_model, 12, budget="1h", **asked)["generated_rows"] == 12
    assert evaluate(tiny_model, **asked)["budget"] is None


def test_the_most_rows_are_those_whose_answers_and_suites_fit() -> None:
    answers = Cost(0.5, 2)
    assert rows_within(66, [answers]) == 66
    assert rows_within(66.9, [answers]) == 66
    assert rows_within(3, [answers]) == 8, "a few rows in any case"
    assert rows_within(66, [answers, Cost(1, 2)]) == 22
    assert rows_within(66, [answers, Cost(1, 2, most=10)]) == 46, "beyond ten rows the suite takes no more time"
    assert rows_within(1e6, [Cost(1, 2, most=10), Cost(1, 2, most=20)]) == 20, "the suites have no more"


class Slow:
    """A suite that takes a fiftieth of a second for each of its rows, and notes how many they are."""

    counts: ClassVar[list[int | None]] = []

    def measure(self, subject: Any, context: SuiteContext) -> dict[str, Measured]:
        self.counts.append(context.count)
        time.sleep(0.02 * (context.count or 1000))
        return {"rows": mean_of([1.0], ["row"], "rows", "of the suite")}


def test_rows_of_suites_stay_within_the_time(
    tiny_model: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.evaluation.compare.open_suites", lambda names, *_: {name: Slow() for name in names})
    Slow.counts.clear()
    found = evaluate(tiny_model, 0, suites=["slow"], budget="1s")
    rows = found["budget"]["rows"]
    assert Slow.counts == [4, rows]
    assert 8 <= rows <= 50
    assert 0.02 <= found["budget"]["seconds_per_row"]["slow"] < 0.5
    assert found["budget"]["seconds_per_answer"] is None
    assert " s for a row of slow." in str(evaluation_table(found).caption)
