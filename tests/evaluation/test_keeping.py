"""What a run gained and forgot, and what would have kept it, in a few steps: the figures by their definitions."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.forgetting_curve import (
    TOLERANCE,
    CurveOptions,
    checkpoints_of,
    forgetting_curve,
    frontier,
    measured_curve,
    recommended,
    writing_run,
)
from tunesmith.evaluation.how_to_keep import how_to_keep, steps_of
from tunesmith.evaluation.keeping import Keeping
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.evaluation.suites.forgetting import general_texts, other_texts
from tunesmith.run import Run

PROSE = 120
"""Paragraphs of the general text, of which 100 are measured."""


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with two checkpoints, beside the file of general text."""
    here = tmp_path_factory.mktemp("kept")
    rows = [{"question": f"{n}?", "answer": str(n % 10) * 8} for n in range(40)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (here / "prose.txt").write_text("\n\n".join(f"{'so ' * 12}{n}." for n in range(PROSE)), encoding="utf-8")
    recipe: dict[str, Any] = {
        "base": str(tiny_model),
        "data": {"train": str(here / "rows.jsonl"), "held_out": 0.2, "cache": False},
        "method": {"kind": "full"},
        "train": {
            "steps": 4, "tokens_per_step": 256, "learning_rate": 1e-2, "precision": "fp32", "checkpoint_every": 2,
            "keep_checkpoints": 9,
        },
    }  # fmt: skip
    return tunesmith.train(recipe, here / "run").directory


def options_of(run: Path, **more: Any) -> CurveOptions:
    return CurveOptions(general=run.parent / "prose.txt", **more)


def bits(model: Path, texts: list[str]) -> float:
    """−log₂ p of a byte."""
    total = sum(score.total for score in tunesmith.load(model).score(texts))
    return -total / math.log(2) / sum(len(text.encode()) for text in texts)


def test_a_curve_has_the_losses_and_scores_of_the_checkpoints_beside_the_base(run: Path, tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    options = options_of(run, tolerance=0.25, answered=3, subscribers=[events.append])
    curve = forgetting_curve(run, options)
    assert [point.name for point in curve.points] == ["step-000002", "step-000004"]
    before = bits(tiny_model, general_texts(options.general))
    after = bits(run, general_texts(options.general))
    last = curve.points[-1]
    assert last.forgetting == pytest.approx(after - before, rel=1e-4)
    assert last.forgetting_interval[0] <= last.forgetting <= last.forgetting_interval[1]
    assert curve.allowed == pytest.approx(0.25 * before)
    assert curve.frontier == frontier(curve.points)
    assert curve.recommended == recommended(curve.points, curve.allowed)
    found = evaluate(run, 3, 128)
    loss, exact = found["differences"]["tuned"]["loss"], found["models"]["tuned"]["exact_match"]
    assert last.gain == pytest.approx(-loss["value"], rel=1e-4)
    assert last.gain > 0
    assert last.gain_interval == pytest.approx((-loss["interval"][1], -loss["interval"][0]), rel=1e-4)
    assert (last.score, last.score_interval) == (exact["value"], tuple(exact["interval"]))
    assert (curve.metric, curve.answered, curve.steps) == ("exact match", 3, None)
    described = curve.described()
    assert described == {
        "points": [
            {
                "name": point.name,
                "gain": {"value": point.gain, "interval": point.gain_interval},
                "forgetting": {"value": point.forgetting, "interval": point.forgetting_interval},
                "score": {"value": point.score, "interval": point.score_interval},
            }
            for point in curve.points
        ],
        "frontier": [point.name for point in curve.frontier],
        "recommended": None if curve.recommended is None else curve.recommended.name,
        "allowed": curve.allowed,
        "loss_unit": "nats per loss token",
        "steps": None,
        "metric": "exact match",
        "answered": 3,
    }
    assert {event["model"] for event in events if event["event"] == "figures"} == {"base", "step-000002", "step-000004"}


@pytest.mark.long
def test_an_evaluation_has_the_sections_that_are_asked_for(run: Path) -> None:
    general = {"forgetting": {"general": str(run.parent / "prose.txt")}}
    found = evaluate(run, 2, 4, checkpoints=True, how_to_keep=True, rerun_steps=1, suite_options=general)
    points = {point["name"]: point for point in found["how_to_keep"]["points"]}
    assert list(points) == ["the run", "rate 0.01", "rate 0.0033", "rate 0.001", "replay 10%"]
    last = found["checkpoints"]["points"][-1]
    assert (last["gain"], last["forgetting"]) == (points["the run"]["gain"], points["the run"]["forgetting"])
    assert (found["how_to_keep"]["steps"], found["how_to_keep"]["answered"]) == (1, 2)
    assert found["checkpoints"]["answered"] == 2
    assert found["checkpoints"]["allowed"] == pytest.approx(TOLERANCE * bits_of_base(found))
    recipes = {path.parent.name: Recipe.load(path) for path in run.glob("how-to-keep/1-steps-*/*/recipe.yaml")}
    assert {"rate-1", "rate-0.33", "rate-0.1"} < set(recipes)
    for name, rate in (("rate-1", 1e-2), ("rate-0.33", 1e-2 / 3), ("rate-0.1", 1e-3)):
        train = recipes[name].train
        assert train.learning_rate == pytest.approx(rate)
        assert (train.steps, train.checkpoint_every, train.keep_checkpoints, train.evaluate_every) == (1, 1, 1, 1)
        assert recipes[name].data.replay == []
    (replay,) = (recipe for name, recipe in recipes.items() if name.startswith("replay"))
    assert (replay.data.replay_share, replay.train.learning_rate) == (0.1, 1e-2)
    lines = Path(replay.data.replay[0]).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == other_texts(run.parent / "prose.txt")
    assert len(lines) == PROSE - 100
    events: list[dict[str, Any]] = []
    again = how_to_keep(run, options_of(run, subscribers=[events.append]), steps=1)
    assert [point.gain for point in again.points] == [point["gain"]["value"] for point in points.values()]
    assert not any("rerun" in event.get("what", "") for event in events), "reruns that have finished are kept"
    assert not any(event["event"] == "warning" for event in events)
    assert again.metric is None, "nothing was answered"


def bits_of_base(found: dict[str, Any]) -> float:
    """The base's loss on general text, from what was allowed of it."""
    allowed: float = found["how_to_keep"]["allowed"]
    return allowed / TOLERANCE


def test_a_curve_may_have_one_point_and_no_answers(run: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("\n\n".join(f"{'so ' * 12}{n}." for n in range(9)), encoding="utf-8")
    options = CurveOptions(general=tmp_path / "short.txt")
    curve = measured_curve(run, {"only": run / "checkpoints" / "step-000004"}, options)
    (point,) = curve.points
    assert (point.name, point.score, curve.metric, curve.answered, curve.steps) == ("only", None, None, 0, None)
    assert (curve.loss_unit, curve.frontier) == ("nats per loss token", (point,))


def test_a_run_that_has_not_finished_is_refused_and_text_without_a_rest_is_warned_of(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tunesmith.Trainer(Recipe.load(run / "recipe.yaml"), tmp_path / "new")
    trainer.close()
    with pytest.raises(UserError, match=r"new has not finished\. Resume it: tunesmith train --resume"):
        how_to_keep(tmp_path / "new")
    with pytest.raises(UserError, match=r"new has no checkpoints. Set train.checkpoint_every and train.keep_check"):
        forgetting_curve(tmp_path / "new")
    short = tmp_path / "short.txt"
    short.write_text("\n\n".join(f"{'so ' * 12}{n}." for n in range(9)), encoding="utf-8")
    events: list[dict[str, Any]] = []

    def interrupted(*_: Any) -> Run:
        raise KeyboardInterrupt

    monkeypatch.setattr("tunesmith.evaluation.how_to_keep.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        how_to_keep(run, CurveOptions(general=short, subscribers=[events.append]), steps=3)
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert warnings == [
        f"All of {short} is measured, so that nothing of it is left to replay.",
        "Interrupted. 0 of 3 reruns have finished. What was computed is kept, and the same command resumes.",
    ]


def test_what_is_no_run_of_a_model_that_writes_has_no_curve(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert writing_run(run) == run
    assert [path.name for path in checkpoints_of(run)] == ["step-000002", "step-000004"]
    with pytest.raises(UserError, match=r"is not a run. A forgetting curve is of a run's checkpoints"):
        writing_run(tiny_model)
    recipe = {"base": str(tiny_model), "data": {"train": "rows.csv"}, "objective": "classification"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    with pytest.raises(UserError, match="does not write text, so its loss on general text is not known"):
        writing_run(tmp_path)


def test_sections_are_refused_before_anything_is_computed(run: Path, tmp_path: Path) -> None:
    def keeping(checkpoints: bool = True, reruns: bool = True, **options: Any) -> Keeping:
        return Keeping(checkpoints, reruns, None, CurveOptions(**options))

    keeping(False, False, tolerance=9.0).refuse(None)
    for tolerance in (0.0, 0.99):
        keeping(tolerance=tolerance).refuse(Run.open(run))
    for tolerance in (-0.01, 1.0):
        with pytest.raises(UserError, match=rf"^--tolerance {tolerance:g} is not a share of the loss"):
            keeping(tolerance=tolerance).refuse(Run.open(run))
    for both in ((True, False), (False, True)):
        with pytest.raises(UserError, match=r"are for a run beside its base. Name one run and no other model"):
            keeping(*both).refuse(None)
    recipe = Recipe.load(run / "recipe.yaml").model_dump(mode="json")
    recipe["data"] |= {"folds": 2}
    del recipe["data"]["held_out"]
    folded = tmp_path / "folded"
    folded.mkdir()
    (folded / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    with pytest.raises(UserError, match=r"folded is trained on all rows \(data.folds\).* Give --data FILE"):
        keeping(False).refuse(Run(folded))
    keeping(False, data=["rows.jsonl"]).refuse(Run(folded))
    with pytest.raises(UserError, match="folded has no checkpoints"):
        keeping(data=["rows.jsonl"]).refuse(Run(folded))


def test_half_of_a_time_is_for_the_reruns() -> None:
    def budgets(reruns: bool, seconds: float | None) -> tuple[float | None, float | None]:
        return Keeping(True, reruns, None, CurveOptions()).budgets(seconds)

    assert budgets(True, 60.0) == (30.0, 30.0)
    assert budgets(False, 60.0) == (60.0, None)
    assert budgets(True, None) == budgets(False, None) == (None, None)


def test_a_run_without_a_measured_time_is_rerun_for_as_many_steps_as_are_asked_for(tmp_path: Path) -> None:
    events = [{"event": "start", "total_steps": 400}, {"event": "start", "total_steps": 300}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events), encoding="utf-8")
    asked = [(None, None), (30, None), (None, 60.0), (30, 60.0)]
    assert [steps_of(Run(tmp_path), *each) for each in asked] == [100, 30, 300, 30]


def test_the_rows_of_a_curve_are_the_held_out_ones_or_those_of_files(run: Path) -> None:
    own = CurveOptions().rows(run)
    assert (own.origin, own.is_whole) == (EvaluationRows.of_run(run).origin, False)
    files = CurveOptions(data=[str(run.parent / "rows.jsonl")]).rows(run)
    assert (files.origin, files.is_whole) == ("rows of rows.jsonl", True)
