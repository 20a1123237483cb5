"""A budget of time: how it is written, and how many rows it allows."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tunesmith.errors import UserError
from tunesmith.evaluation.budget import Cost, budget_for, evaluated_rows, rows_within, seconds_of
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.measuring import Trial
from tunesmith.evaluation.rows import Task
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.inference.sampling import Sampling
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
    assert evaluated_rows(66, [answers]) == 66
    assert evaluated_rows(66.9, [answers]) == 66
    assert evaluated_rows(3, [answers]) == 8, "a few rows in any case"
    assert evaluated_rows(66, [answers, Cost(1, 2)]) == 22
    assert evaluated_rows(66, [answers, Cost(1, 2, most=10)]) == 46, "beyond ten rows the suite takes no more time"
    assert evaluated_rows(1e6, [Cost(1, 2, most=10), Cost(1, 2, most=20)]) == 20, "the suites have no more"
    assert [rows_within(seconds, lambda rows: 10 + rows, 7) for seconds in (10.9, 11, 13.5, 99)] == [0, 1, 3, 7]


class Clock:
    """A model and a suite on a clock of their own: loading takes 2 seconds, an answer ½, and a suite's row ¼."""

    name, model = "clock", None

    def __init__(self) -> None:
        self.now, self.asked, self.contexts = 0.0, [], []
        self.chats: list[Any] = []
        self.is_closed = False

    def uncached(self) -> "Clock":
        return self

    def close(self) -> None:
        self.is_closed = True

    def timings(self, chats: Any, sampling: Sampling, concurrent: int) -> list[Any]:
        self.asked.append((len(chats), sampling.max_new_tokens, concurrent))
        self.chats += chats
        self.now += 2.0 if sampling.max_new_tokens == 1 else 0.5 * len(chats)
        return []

    def measure(self, subject: Any, context: SuiteContext) -> dict[str, Measured]:
        self.contexts.append(context)
        self.now += 1.0
        raise UserError("too few rows to measure anything")


def test_a_budget_is_shared_by_all_models_of_all_folds_and_their_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folds with two models each answer; the suite is measured on the last two models."""
    clock: Any = Clock()
    monkeypatch.setattr("tunesmith.evaluation.budget.time.perf_counter", lambda: clock.now)
    writes = SimpleNamespace(head=SimpleNamespace(generates_text=True))
    tasks = [Task(({"role": "user", "content": f"{n}?"},), "a", f"row {n}") for n in range(8)]
    rows: Any = SimpleNamespace(objective=writes, tasks=lambda count: tasks[:count])
    folds = [Trial(rows, [clock, clock], fold) for fold in (1, 2)]
    found = budget_for([*folds, Trial(None, [clock, clock])], {"slow": clock}, Sampling(9), 60.0)
    assert found is not None
    assert clock.asked == [(1, 1, 1), (8, 9, 8)]
    assert clock.chats == [[{"role": "user", "content": "Hello."}], *[task.chat for task in tasks]]
    ((context,), clock.contexts) = clock.contexts, []
    assert (context.tasks, context.count, context.rows) == ((), 4, None)
    left = 60.0 - (2.0 + 4.0 + 1.0) - 2.0 * 4
    assert found.rows == int(left / (0.5 * 4 + 0.25 * 2))
    assert found.described() == {
        "seconds": 60.0, "seconds_per_answer": 0.5, "seconds_per_row": {"slow": 0.25}, "rows": found.rows,
    }  # fmt: skip
    assert clock.is_closed

    alone = budget_for(folds[:1], {"slow": clock}, Sampling(9), 60.0)
    assert alone is not None
    assert clock.contexts[0].tasks == tasks[:4]
    assert alone.rows == int((60.0 - 7.0 - 2.0 * 2) / (0.5 * 2 + 0.25 * 2))
    only_suites = budget_for([Trial(None, [clock])], {"slow": clock}, Sampling(9), 60.0)
    assert only_suites is not None
    assert (only_suites.seconds_per_answer, only_suites.rows) == (None, int((60.0 - 3.0 - 2.0) / 0.25))
    assert budget_for([Trial(None, [clock])], {}, Sampling(9), 60.0) is None
    clock.most_rows = 30
    assert budget_for([Trial(None, [clock])], {"slow": clock}, Sampling(9), 60.0).rows == 30  # type: ignore[union-attr]


def test_a_suite_has_no_questions_of_rows_whose_model_does_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as pairs of answers, which are chats, for a reward model."""
    clock: Any = Clock()
    monkeypatch.setattr("tunesmith.evaluation.budget.time.perf_counter", lambda: clock.now)
    rates = clock.model = SimpleNamespace(head=SimpleNamespace(generates_text=False))
    rows: Any = SimpleNamespace(objective=rates, tasks=lambda count: ["a task"] * count)
    budget_for([Trial(rows, [clock])], {"slow": clock}, Sampling(9), 60.0)
    assert clock.contexts[0].tasks == ()
    assert clock.contexts[0].rows is rows


def test_what_writes_nothing_is_neither_asked_nor_loaded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = Clock()
    monkeypatch.setattr("tunesmith.evaluation.budget.time.perf_counter", lambda: clock.now)
    clock.model = SimpleNamespace(head=SimpleNamespace(generates_text=False))
    rows: Any = SimpleNamespace(objective=clock.model, tasks=lambda count: ["a task"] * count)
    assert budget_for([Trial(rows, [clock])], {}, Sampling(9), 60.0) is None
    found = budget_for([Trial(rows, [clock], run=Path("run"))], {"slow": clock}, Sampling(9), 60.0)
    assert (clock.asked, clock.contexts[0].run) == ([], Path("run"))
    assert found is not None
    assert (found.seconds_per_answer, found.rows) == (None, int((60.0 - 1.0) / 0.25))


def test_without_costs_a_million_rows_are_the_most() -> None:
    assert evaluated_rows(1.0, []) == 1_000_000
    assert rows_within(1e9, lambda rows: rows) == 1_000_000
    assert Cost(2.0, 3).of(4) == 24.0
    assert Cost(2.0, 3, 1).of(4) == 6.0


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
