"""The content of `evaluation.json`, its summary, and where it is written, from results that are given."""

import inspect
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scripted_server import scripted

from tunesmith.errors import UserError
from tunesmith.evaluation.auc import Area, area_of
from tunesmith.evaluation.classification import SIMULATIONS, confusion_matrix, error_tables, reliability
from tunesmith.evaluation.compare import _cases, _error_tables, _notes, _result, _write, evaluate
from tunesmith.evaluation.figures import Side, prediction_figures, samples_of
from tunesmith.evaluation.judging import Judged
from tunesmith.evaluation.leakage import Leaks
from tunesmith.evaluation.measuring import Measurement, Trial
from tunesmith.evaluation.rows import EvaluationRows, Task
from tunesmith.evaluation.summary import difference_of, summary
from tunesmith.inference.held_out import RowLosses
from tunesmith.metrics import METRICS
from tunesmith.metrics.prediction_metrics import Predictions
from tunesmith.statistics.differences import Difference
from tunesmith.statistics.intervals import wilson
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.subject import Answer

EXACT = {"exact_match": METRICS["exact_match"]}


def rows_of(directory: Path, *answers: str) -> EvaluationRows:
    lines = (json.dumps({"question": f"{n}?", "answer": answer}) + "\n" for n, answer in enumerate(answers))
    (directory / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return EvaluationRows.of_files([str(directory / "rows.jsonl")])


def named(*names: str) -> list[Any]:
    return [SimpleNamespace(name=name) for name in names]


def score(*values: float) -> Measured:
    return mean_of(list(values), [f"row {n}" for n in range(len(values))], "score", "a score", unit="")


def side(rows: EvaluationRows, losses: list[float], answers: list[str], counts: Any = (2, 4)) -> Side:
    found = RowLosses(np.array(losses), np.array(counts))
    return Side(found, [Answer(text) for text in answers], units=[task.source for task in rows.tasks(None)])


# The result


def test_a_result_says_of_which_rows_it_is_and_what_each_model_did_on_them(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "a", "b")
    trial = Trial(rows, named("base", "tuned", "gone"), left_out={"absent": "not here"})
    sides = {"base": side(rows, [4.0, 8.0], ["a", "x"]), "tuned": side(rows, [2.0, 1.0], ["a", "b"])}
    suites: Any = {"base": {"suite.x": score(1.0, 3.0)}, "tuned": {"suite.x": score(2.0, 4.0)}}
    found = Measurement(sides, rows.tasks(None), suites, {"gone": "does not fit"})
    judged = Judged({"base": {"judge.score": score(1.0, 2.0)}}, {"name": "judge"})
    result = _result([trial], [found], EXACT, judged, False, None)
    assert {key: result[key] for key in set(result) - {"figures", "models", "differences", "samples"}} == {
        "rows": 2,
        "data": "rows of rows.jsonl",
        "data_sha256": rows.fingerprint,
        "loss_tokens": 6,
        "generated_rows": 2,
        "reference": "base",
        "comparisons": 3,
        "leakage": None,
        "left_out": {"absent": "not here", "gone": "does not fit"},
        "classification": None,
        "loss_unit": "nats per loss token",
        "folds": None,
        "judge": {"name": "judge"},
    }
    values = {model: {name: each["value"] for name, each in own.items()} for model, own in result["models"].items()}
    both = {"perplexity": pytest.approx(math.exp(2.0)), "suite.x": 2.0, "judge.score": 1.5}
    assert values["base"] == {"loss": 2.0, "exact_match": 0.5, **both}
    assert values["tuned"] == {
        "loss": 0.5, "perplexity": pytest.approx(math.exp(0.5)), "exact_match": 1.0, "suite.x": 3.0,
    }  # fmt: skip
    assert set(result["differences"]["tuned"]) == {"loss", "exact_match", "suite.x"}
    sources = [task.source for task in rows.tasks(None)]
    assert result["samples"] == [
        {"source": sources[0], "prompt": "0?", "expected": "a", "answers": {"base": "a", "tuned": "a"}},
        {"source": sources[1], "prompt": "1?", "expected": "b", "answers": {"base": "x", "tuned": "b"}},
    ]


def test_losses_of_other_tokens_are_compared_by_the_byte_of_what_has_a_loss(tmp_path: Path) -> None:
    """With a prompt, that is the last answer of a chat."""
    turns = [("user", "0?"), ("assistant", "four"), ("user", "1?"), ("assistant", "ab")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    rows = EvaluationRows.of_files([str(tmp_path / "rows.jsonl")])
    sides = {"one": side(rows, [6.0], ["a"], (2,)), "two": side(rows, [3.0], ["a"], (3,))}
    found = Measurement(sides, rows.tasks(None), {"one": {}, "two": {}}, {})
    for is_prompted, length in ((False, 6), (True, 2)):
        result = _result([Trial(rows, named("one", "two"))], [found], EXACT, None, is_prompted, None)
        bits = {model: own["bits_per_byte"]["value"] for model, own in result["models"].items()}
        assert bits == {"one": pytest.approx(6 / math.log(2) / length), "two": pytest.approx(3 / math.log(2) / length)}
        assert "loss" not in result["differences"]["two"]
        assert result["figures"]["bits_per_byte"]["title"] == "bits per byte"


def test_folds_are_pooled_and_suites_are_of_the_last_models(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    parts = [rows_of(tmp_path, "a", "b"), rows_of(tmp_path / "b", "c")]
    trials = [Trial(rows, named("base"), fold) for fold, rows in enumerate(parts, 1)]
    found = [
        Measurement({"base": side(parts[0], [2.0, 2.0], ["a", "b"])}, parts[0].tasks(None), {"base": {}}, {}),
        Measurement({"base": side(parts[1], [8.0], ["x"], (6,))}, parts[1].tasks(None), {"base": {}}, {}),
        Measurement({}, [], {"base": {"suite.x": score(1.0)}}, {}),
    ]
    result = _result([*trials, Trial(None, named("base"))], found, EXACT, None, False, None)
    assert (result["folds"], result["rows"], result["loss_tokens"], result["generated_rows"]) == (2, 3, 12, 3)
    base = result["models"]["base"]
    assert {name: each["value"] for name, each in base.items() if name != "perplexity"} == {
        "loss": 1.0, "exact_match": pytest.approx(2 / 3), "suite.x": 1.0,
    }  # fmt: skip
    assert _cases(found)["base"][2].answer == "x"
    assert [case.source for case in _cases(found)["base"]] == [task.source for each in found for task in each.tasks]


def test_suites_alone_are_of_no_rows_and_leaks_are_beside_all_rows() -> None:
    trial = Trial(None, named("one"))
    found = Measurement({}, [], {"one": {"suite.x": score(1.0, 5.0)}}, {})
    leaks = Leaks(frozenset({"row 0", "row 1"}), 9, {"row 1": SimpleNamespace(detail="the same")})  # type: ignore[dict-item]
    result = _result([trial], [found], EXACT, None, False, leaks)
    nothing = ("data", "data_sha256", "loss_tokens", "classification", "loss_unit", "folds", "judge")
    assert {result[name] for name in nothing} == {None}
    assert (result["rows"], result["generated_rows"], result["samples"]) == (0, 0, [])
    assert result["leakage"]["models"]["one"]["suite.x"]["value"] == 1.0
    assert (result["leakage"]["leaked"], result["models"]["one"]["suite.x"]["value"]) == (1, 3.0)


def test_what_a_prompts_models_had_no_room_for_is_said_by_column() -> None:
    renderers = [SimpleNamespace(note="2 chats"), SimpleNamespace(note=None)]
    subjects = [SimpleNamespace(name=name, renderer=each) for name, each in zip("ab", renderers, strict=True)]
    assert _notes([Trial(None, [*subjects, *named("c")])]) == {"a": "2 chats"}  # type: ignore[list-item]


def test_samples_have_the_answers_of_the_models_that_answered() -> None:
    tasks = [Task(({"role": "user", "content": f"{n}?"},), f"{n}!", f"row {n}") for n in range(3)]
    answers = {"one": [Answer(f"a{n}") for n in range(3)], "silent": []}
    assert samples_of(tasks, answers, [2]) == [
        {"source": "row 2", "prompt": "2?", "expected": "2!", "answers": {"one": "a2"}}
    ]


def test_a_result_is_written_where_it_is_to_be_as_people_can_read_it(tmp_path: Path) -> None:
    _write(tmp_path / "new" / "out", {"größe": np.float64(1.5), "rows": [1]})
    text = (tmp_path / "new" / "out" / "evaluation.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "größe": 1.5,\n  "rows": [\n')
    _write(tmp_path / "new" / "out", {"rows": 2})
    assert json.loads((tmp_path / "new" / "out" / "evaluation.json").read_text(encoding="utf-8")) == {"rows": 2}
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/evaluation\.json cannot be written"):
        _write(tmp_path / "file", {})


def test_200_rows_are_answered_in_128_tokens_at_most_if_nothing_is_said(tmp_path: Path) -> None:
    rows_of(tmp_path, "a", "b", "c")
    with scripted(lambda _: "a") as server:
        found = evaluate(server.url, data=tmp_path / "rows.jsonl", output=tmp_path / "out")
    assert inspect.signature(evaluate).parameters["rows"].default == 200
    assert (found["rows"], found["generated_rows"], len(server.asked), len(found["samples"])) == (3, 3, 3, 3)
    assert {body["max_completion_tokens"] for body in server.asked} == {128}
    assert {body.get("repetition_penalty", 1.0) for body in server.asked} == {1.0}
    assert {found[name] for name in ("prompt", "budget", "gate", "judge", "leakage")} == {None}
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(found)
    )


# Summaries


def test_a_summary_describes_figures_values_and_differences() -> None:
    models = {"base": {"a": score(1.0, 2.0)}, "tuned": {"a": score(2.0, 2.5), "b": score(1.0)}}
    found = summary(models, "base")
    low, high = models["base"]["a"].estimate[1]
    assert found["models"]["base"] == {"a": {"value": 1.5, "interval": (low, high), "rows": 2}}
    about = {"title": "score", "explanation": "a score", "better": "higher", "unit": ""}
    assert found["figures"] == {"a": about, "b": about}
    assert (found["reference"], found["comparisons"], list(found["differences"])) == ("base", 1, ["tuned"])
    assert list(found["differences"]["tuned"]) == ["a"], "the base has no b"
    assert found["differences"]["tuned"]["a"]["value"] == 0.75


@pytest.mark.parametrize(
    ("value", "better", "verdict"),
    [
        (0.5, "higher", "better"), (-0.5, "higher", "worse"), (0.5, "lower", "worse"), (-0.5, "lower", "better"),
        (0.5, "neither", "different"),
    ],
)  # fmt: skip
def test_a_difference_is_shown_below_5_percent_and_else_says_which_rows_would(
    value: float, better: Any, verdict: str
) -> None:
    difference = Difference(value, (value - 1, value + 1), 0.02, 0.4, 50)
    shown = {
        "value": value, "interval": (value - 1, value + 1), "rows": 50, "p_value": 0.02, "adjusted_p_value": 0.04,
        "verdict": verdict,
    }  # fmt: skip
    assert difference_of(difference, better, 0.04, 0.05) == shown
    hidden = difference_of(difference, better, 0.05, 0.05)
    assert hidden.pop("rows_needed") > 50
    assert hidden == {**shown, "adjusted_p_value": 0.05, "verdict": "not shown"}
    stricter = difference_of(difference, better, 0.05, 0.01)["rows_needed"]
    assert stricter > difference_of(difference, better, 0.05, 0.05)["rows_needed"]


def test_rows_needed_are_those_for_one_of_as_many_comparisons() -> None:
    one = {"base": {"a": score(*[0.0] * 30)}, "tuned": {"a": score(*[0.5, -0.4, 0.3, -0.1, 0.2, -0.1] * 5)}}
    two = {**one, "again": one["tuned"]}
    alone, among = (summary(models, "base")["differences"]["tuned"]["a"] for models in (one, two))
    assert (alone["p_value"], alone["adjusted_p_value"]) == (among["p_value"], alone["p_value"])
    assert among["adjusted_p_value"] == pytest.approx(2 * alone["p_value"])
    assert among["rows_needed"] > alone["rows_needed"]


# Classifiers


def predictions(probabilities: Any, targets: Any, labels: tuple[str, ...] = ("a", "b")) -> Predictions:
    rows = [np.asarray(row, np.float32)[None] for row in probabilities]
    return Predictions(rows, [np.array([[target]], np.float32) for target in targets], labels)


def test_tables_of_errors_have_counts_bins_and_what_chance_shows() -> None:
    found = predictions([(0.9, 0.1), (0.8, 0.2), (0.2, 0.8), (1.0, 0.0)], [0, 1, 1, 0])
    tables = error_tables(found)
    assert list(tables) == ["labels", "confusion", "reliability", "calibration_by_chance"]
    assert (tables["labels"], tables["confusion"]) == (["a", "b"], [[2, 0], [1, 1]])
    middle = tables["reliability"][0]
    assert (middle["low"], middle["high"], middle["rows"], middle["accuracy"]) == (0.8, 13 / 15, 2, 0.5)
    assert (middle["confidence"], middle["interval"]) == (pytest.approx(0.8), wilson(0.5, 2))
    last = tables["reliability"][-1]
    assert (last["low"], last["high"], last["rows"]) == (14 / 15, 1.0, 1), "a confidence of 1 is in the last bin"
    assert [each.rows for each in reliability(found)] == [2, 1, 1]
    mean, high = tables["calibration_by_chance"]
    assert 0 < mean < high < 1
    assert SIMULATIONS == 1000
    assert confusion_matrix(predictions([(0.0, 0.0, 1.0)], [0])).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_tables_of_errors_are_of_classifiers_of_one_class_only() -> None:
    found = predictions([(0.9, 0.1)], [0])
    sides = {"one": Side(None, predictions=found, units=["row 0"]), "server": Side(None)}

    def rows(*metrics: str) -> Any:
        return SimpleNamespace(objective=SimpleNamespace(head=SimpleNamespace(metrics=metrics)))

    assert _error_tables(rows("accuracy"), sides) is None
    tables = _error_tables(rows("accuracy", "calibration_error"), sides)
    assert tables is not None
    assert list(tables) == ["one"]


def test_metrics_of_predictions_know_their_unit_their_direction_and_whether_they_count_hits() -> None:
    found = predictions([(0.9, 0.1), (0.8, 0.2), (0.2, 0.8)], [0, 1, 1])
    figures = prediction_figures(found, ["x", "y", "z"], ["accuracy", "macro_f1", "calibration_error"])
    accuracy, f1, error = figures.values()
    assert accuracy.values is not None
    assert (accuracy.values.tolist(), accuracy.value) == ([1.0, 0.0, 1.0], pytest.approx(2 / 3))
    assert (accuracy.better, error.better) == ("higher", "lower")
    assert (f1.values, error.values, accuracy.unit) == (None, None, "share")
    assert list(accuracy.units) == ["x", "y", "z"]


# Areas


def test_an_area_has_the_variance_of_delong_unless_a_group_has_one_row_or_all_are_apart() -> None:
    scores, positive = np.array([1.0, 3.0, 2.0, 4.0]), np.array([False, False, True, True])
    value, (low, high) = Area(scores, positive).estimate()
    error = (0.125 / 2 + 0.125 / 2) ** 0.5 / (0.75 * 0.25)  # each group has placements of ½ and 1
    assert value == 0.75
    assert [math.log(end / (1 - end)) for end in (low, high)] == pytest.approx(
        [math.log(3) - 1.959964 * error, math.log(3) + 1.959964 * error], rel=1e-5
    )
    one = np.array([False, False, True, False])
    assert Area(scores, one).estimate() == (pytest.approx(1 / 3), wilson(1 / 3, 1)), "one row has no variance"
    assert Area(scores, np.zeros(4, bool))(np.arange(4)) == 0.5
    assert Area(scores, positive)(np.array([0, 2, 2, 1])) == 0.5
    assert Area(scores, positive).on(np.array([0, 1, 3])).estimate()[0] == 1.0


def test_a_change_of_areas_is_students_within_minus_1_and_1() -> None:
    """By hand: the positive rows' parts change by 1, 0 and the negative ones' by ½, ½, so that only the former vary."""
    positive = np.array([True, True, False, False])
    before, after = Area(np.array([0.0, 4.0, 1.0, 2.0]), positive), Area(np.array([3.0, 4.0, 1.0, 2.0]), positive)
    change = after.change_from(before)
    assert (change.value, change.standard_error, change.rows) == (0.5, 0.5, 4)
    assert change.interval == (-1.0, 1.0), "no difference is greater, however few rows there are"
    assert change.p_value == pytest.approx(0.5), "of Student's t of 1 with one degree of freedom"
    swapped = before.change_from(after)
    assert (swapped.value, swapped.p_value, swapped.interval) == (-0.5, pytest.approx(0.5), (-1.0, 1.0))
    one = np.array([True, False, False, False])
    change = Area(np.array([4.0, 1.0, 2.0, 3.0]), one).change_from(Area(np.array([0.0, 1.0, 2.0, 3.0]), one))
    assert change == Difference(1.0, (-1.0, 1.0), 1.0, 1.0, 4), "one row shows nothing"
    same = after.change_from(after)
    assert (same.value, same.p_value, same.standard_error, same.rows) == (0.0, 1.0, 0.0, 4)
    turned = Area(np.array([3.0, 4.0, 1.0, 2.0]), positive).change_from(Area(np.array([1.0, 2.0, 3.0, 4.0]), positive))
    assert (turned.value, turned.p_value) == (1.0, 0.0)


def test_a_figure_of_an_area_is_described_and_has_its_estimate() -> None:
    figure = area_of(np.array([1.0, 2.0]), np.array([False, True]), ["a", "b"], "area", "how far apart")
    assert (figure.title, figure.explanation, figure.better, figure.unit) == ("area", "how far apart", "higher", "")
    assert (figure.estimate, list(figure.units)) == ((1.0, wilson(1.0, 1)), ["a", "b"])
    assert area_of(np.array([1.0]), np.array([True]), ["a"], "t", "e", "lower").better == "lower"
