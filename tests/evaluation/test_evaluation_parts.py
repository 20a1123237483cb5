"""Parts of an evaluation on given rows and figures: rows, losses per byte, leaks, limits, labels of people."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from evaluated import recipe_in, turn, written

from tunesmith.data.example import Completion, Example, Source
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import _fingerprint, _per_byte
from tunesmith.evaluation.figures import LOSS, Side, figures_of, loss_figures, token_counts_differ
from tunesmith.evaluation.gate import Gate, checked
from tunesmith.evaluation.judging import Judging, open_judging
from tunesmith.evaluation.labels import Labels
from tunesmith.evaluation.leakage import LISTED, Leaks, without_leaked
from tunesmith.evaluation.measuring import Trial
from tunesmith.evaluation.rows import LONGEST, EvaluationRows, Task, answered, task_of
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.inference.held_out import RowLosses
from tunesmith.inference.result_cache import digest_of
from tunesmith.metrics import METRICS
from tunesmith.statistics.measured import mean_of
from tunesmith.statistics.prediction_powered import prediction_powered
from tunesmith.subjects.local_subject import LocalSubject
from tunesmith.subjects.served_subject import ServedSubject
from tunesmith.subjects.verdicts import Verdicts

# Rows


def test_a_runs_rows_are_its_held_out_ones_and_those_it_was_trained_on_are_known(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": f"{n}!"} for n in range(5)]
    files = {"train": written(tmp_path / "a.jsonl", rows[:3]), "held_out": [written(tmp_path / "b.jsonl", rows[3:])]}
    own = EvaluationRows.of_run(recipe_in(tmp_path / "run", **files))
    assert own.origin == "held-out rows of run"
    assert (own.run, own.is_whole) == (tmp_path / "run", False)
    assert [task.expected for task in own.tasks(None)] == ["3!", "4!"]
    assert [task.expected for task in own.tasks(1)] == ["3!"]
    assert own.tasks(0) == []
    assert [str(task_of(each).expected) for each in own.training_examples] == ["0!", "1!", "2!"]
    of_file = EvaluationRows.of_files([files["train"]], tmp_path / "run")
    assert (of_file.origin, of_file.run, of_file.is_whole) == ("rows of a.jsonl", tmp_path / "run", True)
    assert [task.expected for task in of_file.tasks(None)] == ["0!", "1!", "2!"]
    elsewhere = EvaluationRows.of_files([written(tmp_path / "c.jsonl", rows[:3])])
    assert elsewhere.fingerprint == of_file.fingerprint != own.fingerprint, "of what the rows say, not of the file"
    assert len(of_file.fingerprint) == 64


def test_rows_of_files_are_rendered_by_the_runs_objective_or_by_what_they_are(tmp_path: Path) -> None:
    chats = written(tmp_path / "chats.jsonl", [{"question": "a?", "answer": "b"}])
    run = recipe_in(tmp_path / "run", {"kind": "instruction", "learn": "last"}, train=chats, columns={"x": "answer"})
    of_run = EvaluationRows.of_files([chats], run)
    assert of_run.objective.learn == "last"
    data = of_run.recipe.data
    assert (data.columns, data.held_out, data.max_length) == ({"x": "answer"}, 0.0, LONGEST)
    assert (data.overflow, data.skip_unusable) == ("drop", True)
    prompts = recipe_in(tmp_path / "prompts", {"kind": "grpo", "rewards": ["exact"]}, train=chats)
    assert EvaluationRows.of_files([chats], prompts).objective.kind == "instruction"
    texts = written(tmp_path / "texts.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    classes = recipe_in(tmp_path / "classes", "classification", train=texts)
    of_classes = EvaluationRows.of_files([texts], classes)
    assert (of_classes.is_whole, of_classes.recipe.data.held_out) == (False, [texts])
    assert of_classes.recipe.data.train == [texts]
    with pytest.raises(UserError, match=r"empty\.jsonl holds no rows\. Name a file that does"):
        EvaluationRows.of_files([written(tmp_path / "empty.jsonl", [])])


def test_losses_are_of_the_bytes_of_answers_with_their_reasoning_or_of_raw_text(tmp_path: Path) -> None:
    chat = {
        "messages": [
            turn("user", "a?"), turn("assistant", "über"), turn("user", "b?"),
            turn("assistant", "<think>\nWell\n</think>\n\nSo."),
        ]
    }  # fmt: skip
    rows = EvaluationRows.of_files(
        [written(tmp_path / "rows.jsonl", [chat, {"messages": [turn("user", "q"), turn("assistant", "four")]}])]
    )
    units = [task.source for task in rows.tasks(None)]
    lengths = rows.answer_bytes(units)
    assert lengths is not None
    assert lengths.tolist() == [5 + 4 + 3, 4]
    last = rows.answer_bytes(units, only_last=True)
    assert last is not None
    assert last.tolist() == [4 + 3, 4]
    assert rows.answer_bytes([units[0], f"{units[0]}, part 2"]) is None
    texts = EvaluationRows.of_files([written(tmp_path / "texts.jsonl", [{"text": "größer"}])])
    of_text = texts.answer_bytes([str(texts.examples[0].source)])
    assert of_text is not None
    assert of_text.tolist() == [8]


def test_the_answer_of_an_example_is_the_best_completion_or_the_column_or_its_own() -> None:
    question = turn("user", "q")
    source = Source("rows", 1)
    ranked = Example(
        source, messages=(question,),
        completions=tuple(Completion((turn("assistant", text),), score) for text, score in (("a", 1.0), ("b", 2.0))),
    )  # fmt: skip
    found = answered(ranked)
    assert found is not None
    assert (found.messages, found.completions) == ((question, turn("assistant", "b")), ())
    assert task_of(ranked) == Task((question,), "b", "rows row 1")
    prompt = Example(source, messages=(question,), columns={"answer": 4})
    found = answered(prompt)
    assert found is not None
    assert found.messages == (question, turn("assistant", "4"))
    assert answered(replace(prompt, columns={})) is None
    chat = Example(source, messages=(question, turn("assistant", "c")), columns={"answer": "d"})
    assert answered(chat) is chat
    text = Example(source, text="raw", columns={"answer": "d"})
    assert answered(text) is text


# Figures


def losses(*sums: float, counts: Any = (2, 3)) -> RowLosses:
    return RowLosses(np.array(sums), np.array(counts))


def test_losses_of_models_with_other_tokenizers_are_compared_by_the_byte() -> None:
    one, two = Side(losses(2.0, 3.0), units=["a", "b"]), Side(losses(2.0, 4.0, counts=(1, 3)), units=["a", "b"])
    assert token_counts_differ([one, two])
    assert token_counts_differ([one, one, two])
    assert not token_counts_differ([one, Side(None), one])
    assert not token_counts_differ([])
    figures = loss_figures(two.losses, two.units, CausalLMHead(), "nats per loss token")  # type: ignore[arg-type]
    found = _per_byte(figures, two, np.array([4, 8]))
    assert list(found) == [LOSS, "bits_per_byte", "perplexity"]
    assert found["bits_per_byte"].value == pytest.approx(6.0 / math.log(2) / 12)
    assert (found["bits_per_byte"].unit, found["bits_per_byte"].better) == ("bits", "lower")
    assert (found[LOSS].is_compared, found[LOSS].value) == (False, 1.5)
    assert list(_per_byte(figures, two, None)) == [LOSS, "perplexity"]
    assert _per_byte(figures, Side(None), np.array([4, 8])) is figures


def test_what_an_objective_reports_beside_its_loss_is_a_figure() -> None:
    row_losses = replace(losses(2.0, 3.0), others={"accuracy": np.array([2.0, 0.0]), "my_own": np.array([1.0, 1.5])})
    found = loss_figures(row_losses, ["a", "b"], CausalLMHead(), "nats per row")
    assert list(found) == [LOSS, "accuracy", "my_own"], "no perplexity of a loss that is not per token"
    assert (found[LOSS].value, found[LOSS].unit, found[LOSS].better) == (1.0, "nats per row", "lower")
    accuracy, own = found["accuracy"], found["my_own"]
    assert (accuracy.value, accuracy.title, accuracy.better, accuracy.unit) == (0.4, "pairs in order", "higher", "")
    assert (own.value, own.title, own.explanation) == (0.5, "my own", "of the objective")
    kept = Side(None).with_figures({"x": own}).with_figures({"y": accuracy})
    assert figures_of(kept, [], CausalLMHead(), METRICS, "nats") == {"x": own, "y": accuracy}


def test_several_folds_have_a_fingerprint_of_their_fingerprints() -> None:
    one, two = (SimpleNamespace(fingerprint=text) for text in ("a", "b"))
    rows: Any = [one, two]
    assert _fingerprint([]) is None
    assert _fingerprint(rows[:1]) == "a"
    assert _fingerprint(rows) == digest_of(["a", "b"])


def test_figures_without_leaked_rows_leave_out_what_is_of_other_rows() -> None:
    names = [f"row {n}" for n in range(25)]
    leak: Any = SimpleNamespace(detail="the same as train row 1")
    found = dict.fromkeys(names[1:], leak)
    figure = mean_of([float(n) for n in range(25)], names, "score", "a score")
    pieces = mean_of([5.0, 6.0, 7.0], ["row 0", "row 0, part 2", "row 1"], "score", "a score")
    other, gone = mean_of([1.0], ["prompt 1"], "x", "x"), mean_of([1.0], ["row 3"], "x", "x")
    models = {"base": {"a": figure, "pieces": pieces, "other": other, "gone": gone}, "tuned": {"a": figure}}
    result = without_leaked(models, Leaks(frozenset(names), 40, found), "base")
    assert (result["rows"], result["training_rows"], result["leaked"]) == (25, 40, 24)
    assert result["leaks"] == [{"source": f"row {n}", "detail": leak.detail} for n in range(1, LISTED + 1)]
    assert LISTED == 20
    assert result["reference"] == "base"
    kept = result["models"]["base"]
    assert {name: (each["value"], each["rows"]) for name, each in kept.items()} == {"a": (0.0, 1), "pieces": (5.5, 2)}
    assert list(result["models"]["tuned"]) == ["a"]


def test_a_gate_says_by_which_interval_a_limit_is_met() -> None:
    entry = {"value": 0.61234, "interval": [0.5, 0.7], "rows": 1500}
    result: dict[str, Any] = {
        "reference": "base", "models": {name: {"loss": entry} for name in ("base", "tuned")},
        "differences": {"tuned": {}},
    }  # fmt: skip
    limits = [{"figure": "loss", "at_least": at} for at in (0.5, 0.6, 0.8)]
    limits.append({"figure": "loss", "difference": True, "at_most": 1})
    found = checked(Gate.model_validate({"limits": limits, "undecided": "pass"}), result)
    about = "0.6123, with 95 % between 0.5 and 0.7 over 1,500 rows"
    assert [limit["why"] for limit in found["limits"]] == [
        f"{about}, is at least 0.5",
        f"{about}, may be at least 0.6 or not: more rows would decide it",
        f"{about}, is not at least 0.8",
        "loss was not measured of tuned. Measured: nothing",
    ]
    assert found["limits"][0] == {
        "figure": "loss", "difference": False, "at_least": 0.5, "model": "tuned", **entry, "outcome": "met",
        "why": f"{about}, is at least 0.5",
    }  # fmt: skip
    assert (found["passed"], found["undecided"]) == (False, "pass")
    alone = {**result, "models": {"base": {"loss": entry}}, "differences": {}}
    (only,) = checked(Gate.model_validate({"limits": limits[:1]}), alone)["limits"]
    assert (only["model"], only["outcome"]) == ("base", "met"), "a model alone is the one that is meant"


# People's labels


def judging(reference: str | None = None) -> Judging:
    subject: Any = SimpleNamespace(name="judge")
    return Judging(subject, None, None, reference, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "parts"), [(0, []), (1, ["people", "kappa"]), (2, ["people", "kappa", "corrected"])])
def test_a_judge_is_corrected_by_two_labels_or_more(count: int, parts: list[str]) -> None:
    nan = float("nan")
    values = np.array([4.0, 2.0, nan, 5.0, 1.0])
    labels = np.array([*[4.0, 3.0][:count], *[nan] * (2 - count), 5.0, nan, nan])
    verdicts = Verdicts(values, values, values, tuple("abcde"))
    found = judging()._by_people(labels, verdicts)
    assert found["labels"] == count
    assert [name for name in ("people", "kappa", "corrected") if found[name] is not None] == parts
    if count:
        assert (found["people"]["value"], found["people"]["rows"]) == (1 / count, count)
    if count == 2:
        value, (low, high) = prediction_powered(values[:2], labels[:2], values[3:], (1.0, 5.0))
        assert found["corrected"] == {"value": value, "interval": [max(1.0, low), min(5.0, high)]}


def test_wins_are_corrected_on_their_own_scale() -> None:
    values = np.array([1.0, 0.0, 0.5, 1.0])
    labels = np.array([1.0, 0.0, np.nan, np.nan])
    found = judging("base")._by_people(labels, Verdicts(values, values, values, tuple("abcd")))
    value, (low, high) = prediction_powered(values[:2], labels[:2], values[2:], (0.0, 1.0))
    assert found["corrected"] == {"value": value, "interval": [max(0.0, low), min(1.0, high)]}


def test_a_label_is_a_score_from_1_to_5_or_names_the_better_answer(tmp_path: Path) -> None:
    def label(**values: Any) -> dict[str, Any]:
        return {"source": "row 1", "model": "tuned", **values}

    def read(reference: str | None, *rows: Any) -> list[float]:
        found = Labels.read(written(tmp_path / "labels.jsonl", list(rows)), reference)
        assert found.file == tmp_path / "labels.jsonl"
        assert np.isnan(found.of("base", ["row 1"])).all()
        return found.of("tuned", ["row 1", "row 2"])[:1].tolist()

    for score, expected in ((1, 1.0), ("5", 5.0), (2.5, 2.5)):
        assert read(None, label(score=score)) == [expected]
    for winner, expected in (("tuned", 1.0), ("base", 0.0), ("tie", 0.5)):
        assert read("base", label(preferred=winner)) == [expected]
    for bad in (label(score=0.9), label(score=5.1), label(score=None), label(score="good"), label(), {"score": 3}):
        with pytest.raises(UserError, match=r"row 1: a label has source, model and a score from 1 to 5\.$"):
            read(None, bad)
    with pytest.raises(UserError, match=r"a label has source, model and preferred: its model, base, or tie\.$"):
        read("base", label(preferred="other"))


def test_a_judge_has_the_concurrency_device_and_cache_that_are_asked_for() -> None:
    writes = SimpleNamespace(head=SimpleNamespace(generates_text=True))
    rows: Any = SimpleNamespace(objective=writes, tasks=lambda count: ["a task"])
    one: Any = SimpleNamespace(name="one")
    asked: Any = {"rubric": None, "pairs": False, "labels": None, "trials": [Trial(rows, [one])], "count": None}
    served = open_judging("http://127.0.0.1:9/v1#m", **asked, concurrent=3, device="cpu", keeps=False)
    assert served is not None
    assert isinstance(served.subject, ServedSubject)
    assert served.subject._concurrent == 3
    here = open_judging("embedded", **asked, concurrent=5, device="cpu", keeps=False)
    assert here is not None
    assert isinstance(here.subject, LocalSubject)
    assert (here.subject.model.concurrent, str(here.subject.model.device), here.subject.keeps) == (5, "cpu", False)
    kept = open_judging("embedded", **asked, concurrent=5, device="cpu", keeps=True)
    assert kept is not None
    assert isinstance(kept.subject, LocalSubject)
    assert kept.subject.keeps
    assert (kept.reference, kept.labels, kept.rubric) == (None, None, None)
