"""A judge's report and events from given verdicts, and which rows a run was trained on too."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tunesmith.errors import UserError
from tunesmith.evaluation.judging import Judging
from tunesmith.evaluation.labels import Labels
from tunesmith.evaluation.leakage import leaks_of
from tunesmith.evaluation.measuring import Trial
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.metrics import Case
from tunesmith.run import Events
from tunesmith.subjects.verdicts import Verdicts

NAN = float("nan")


class Wise:
    """A judge that gives each answer 4 points, or prefers each second one; it cannot be read on the last case."""

    name = "wise"

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def scores(self, cases: Any, done: Any) -> Verdicts:
        done(2)
        values = np.array([*[4.0] * (len(cases) - 1), NAN])
        return Verdicts(values, values, np.array([4.0] * len(cases)), tuple(case.source for case in cases))

    def pairs(self, first: Any, second: Any, done: Any) -> Verdicts:
        assert [case.answer for case in first] == ["x", "x"]
        assert [case.answer for case in second] == ["y", "y"]
        values = np.array([1.0, NAN])
        return Verdicts(values, values, values, tuple(case.source for case in second))


def cases(answer: str) -> list[Case]:
    return [Case(f"row {n}", "?", answer, "!", None) for n in range(2)]


def judging(reference: str | None, labels: Labels | None = None) -> tuple[Judging, Any]:
    wise: Any = Wise()
    return Judging(wise, wise, "rubric.md", reference, labels), wise


def test_scores_of_a_judge_are_emitted_and_reported_with_what_could_not_be_read() -> None:
    judge, wise = judging(None, Labels(Path("labels.jsonl"), {("row 0", "one"): 5.0}))
    events: list[Any] = []
    found = judge.judged({"one": cases("x"), "two": cases("y")}, Events(events.append))
    progress = [(each["what"], each["done"], each["total"]) for each in events if each["event"] == "progress"]
    assert progress == [(f"wise: verdicts on {name}", done, 4) for name in ("one", "two") for done in (0, 2)]
    figures = [(each["model"], each["fold"], list(each["figures"])) for each in events if each["event"] == "figures"]
    assert figures == [("one", None, ["judge.score"]), ("two", None, ["judge.score"])]
    assert found.figures["one"]["judge.score"].value == 4.0
    about = found.report["models"]["one"]
    assert (about["replies"], about["unread"], about["labels"], about["corrected"]) == (4, 1, 1, None)
    assert (about["itself"]["value"], about["itself"]["rows"], about["itself"]["chance"]) == (1.0, 1, 1.0)
    assert (about["people"]["value"], about["verdicts"]) == (0.0, {"row 0": 4.0, "row 1": None})
    rest = {name: value for name, value in found.report.items() if name != "models"}
    assert rest == {
        "name": "wise", "rubric": "rubric.md", "pairs": False, "refused_schema": None,
        "labels": {"file": "labels.jsonl", "rows": 1},
    }  # fmt: skip
    assert wise.closed == 1


def test_pairs_are_compared_with_the_first_model_which_ties_with_itself() -> None:
    judge, _ = judging("one")
    found = judge.judged({"one": cases("x"), "two": cases("y")}, Events())
    assert list(found.figures) == ["one", "two"]
    tie = found.figures["one"]["judge.wins"]
    assert (tie.value, tie.title, list(tie.units), tie.bounds) == (
        0.5, "preferred by wise", ["row 0", "row 1"], (0.5, 0.5),
    )  # fmt: skip
    assert found.figures["two"]["judge.wins"].value == 1.0
    assert (list(found.report["models"]), found.report["pairs"], found.report["labels"]) == (["two"], True, None)
    assert "labels" not in found.report["models"]["two"]
    unread = Verdicts(np.array([NAN]), np.array([NAN]), np.array([NAN]), ("row 0",))
    assert judge._figures(unread) == {}
    assert judge._about("two", unread)["itself"] is None


def test_labels_of_other_answers_are_refused_with_the_first_that_is_judged() -> None:
    for reference, column in ((None, "one"), ("one", "two")):
        judge, _ = judging(reference, Labels(Path("labels.jsonl"), {("row 9", "two"): 1.0, ("row 0", "three"): 1.0}))
        with pytest.raises(UserError) as refused:
            judge.judged({"one": cases("x"), "two": cases("y")}, Events())
        assert str(refused.value) == (
            "labels.jsonl: no label is of an answer that is judged. The first such answer has "
            f"source: row 0, model: {column}."
        )


def test_leaked_rows_are_those_that_the_run_was_trained_on(tmp_path: Path) -> None:
    def write(name: str, *questions: str) -> str:
        rows = (json.dumps({"question": text, "answer": f"The answer to {text}"}) + "\n" for text in questions)
        (tmp_path / name).write_text("".join(rows), encoding="utf-8")
        return str(tmp_path / name)

    same, other = "What is the capital of France?", "How many legs does a spider have?"
    data = {"train": write("train.jsonl", same, "Who wrote it?", "And why?"), "held_out": [write("held.jsonl", other)]}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"base": "embedded", "data": data}), encoding="utf-8")
    asked = write("asked.jsonl", other, same)
    rows, subjects = EvaluationRows.of_files([asked], tmp_path), [SimpleNamespace(name="one")]
    for trial in (Trial(rows, subjects), Trial(EvaluationRows.of_files([asked]), subjects, run=tmp_path)):
        found = leaks_of([Trial(None, []), trial])
        second = rows.tasks(None)[1].source
        assert (list(found.found), found.training) == ([second], 3)
        assert found.names == {task.source for task in rows.tasks(None)}
    held = leaks_of([Trial(EvaluationRows.of_run(tmp_path), [])])
    assert (held.found, held.training, len(held.names)) == ({}, 3, 1)
    with pytest.raises(UserError, match=r"^--leakage compares with the rows that a run was trained on\. Name a run"):
        leaks_of([Trial(EvaluationRows.of_files([asked]), [])])
    with pytest.raises(UserError, match=r"^--leakage is about rows, and only suites are measured\. Leave it out\.$"):
        leaks_of([Trial(None, [])])
