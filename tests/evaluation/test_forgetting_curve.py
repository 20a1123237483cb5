"""The forgetting curve: the frontier by its definition, and a run that learns its task and loses everything else."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunesmith
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.forgetting_curve import CurveOptions, CurvePoint, forgetting_curve, frontier, recommended
from tunesmith.evaluation.suites.forgetting import general_texts


def point(gain: float, forgetting: float, name: str = "step") -> CurvePoint:
    return CurvePoint(name, gain, (gain, gain), forgetting, (forgetting, forgetting))


def test_the_frontier_has_the_points_that_no_other_beats() -> None:
    draw = np.random.default_rng(0)
    points = [point(*pair) for pair in draw.integers(0, 8, (40, 2)).tolist()]
    best = {gain: min(each.forgetting for each in points if each.gain >= gain) for gain in range(8)}
    more = {gain: min((each.forgetting for each in points if each.gain > gain), default=99) for gain in range(8)}
    expected = [each for each in points if each.forgetting == best[each.gain] < more[each.gain]]
    assert list(frontier(points)) == expected
    assert 0 < len(expected) < 20


def test_the_recommended_checkpoint_gains_most_within_what_it_may_forget() -> None:
    points = [point(1.0, 0.0, "a"), point(2.0, 0.1, "b"), point(2.0, 0.05, "c"), point(3.0, 0.2, "d")]
    chosen = [getattr(recommended(points, allowed), "name", None) for allowed in (-0.1, 0.0, 0.1, 1.0)]
    assert chosen == [None, "a", "b", "d"]
    assert recommended([point(-1.0, -0.5)], 1.0) is None, "it gained nothing"


@pytest.mark.long
def test_the_curve_of_a_run_is_what_evaluation_says_of_its_checkpoints(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": str(n % 10) * 8} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe: dict[str, Any] = {
        "base": str(tiny_model),
        "data": {"train": str(tmp_path / "rows.jsonl"), "held_out": 0.2, "cache": False},
        "method": {"kind": "full"},
        "train": {
            "steps": 12, "tokens_per_step": 512, "learning_rate": 1e-2, "precision": "fp32", "checkpoint_every": 4,
            "keep_checkpoints": 9,
        },
    }  # fmt: skip
    run = tunesmith.train(recipe, tmp_path / "run").directory
    curve = forgetting_curve(run, CurveOptions(tolerance=0.5))
    names = ["step-000004", "step-000008", "step-000012"]
    assert [each.name for each in curve.points] == names
    last = curve.points[-1]
    assert last.gain_interval[0] > 1, "it learned"
    assert last.forgetting_interval[0] > 0.1, "and forgot"
    assert curve.frontier == frontier(curve.points)
    before, after = (_general_bits(model) for model in (tiny_model, run))
    assert last.forgetting == pytest.approx(after - before, rel=1e-5)
    assert curve.recommended == recommended(curve.points, 0.5 * before)
    assert (curve.metric, last.score) == (None, None)
    assert curve.described()["points"][-1]["score"] is None
    result = evaluate(run, 4, 12, checkpoints=True)
    answered = result["checkpoints"]
    assert (answered["metric"], answered["answered"]) == (result["figures"]["exact_match"]["title"], 4)
    own = result["models"]["tuned"]["exact_match"]
    assert answered["points"][-1]["score"] == {name: own[name] for name in ("value", "interval")}
    loss = evaluate(run, 1, 1)["differences"]["tuned"]["loss"]
    assert last.gain == pytest.approx(-loss["value"], rel=1e-5)
    assert last.gain_interval == pytest.approx([-loss["interval"][1], -loss["interval"][0]], rel=1e-5)
    with pytest.raises(UserError, match=r"is not a run. A forgetting curve is of a run's checkpoints"):
        forgetting_curve(tiny_model)


def _general_bits(model: Path) -> float:
    """Of a byte of general text."""
    texts = general_texts(None)
    total = sum(score.total for score in tunesmith.load(model).score(texts))
    return -total / math.log(2) / sum(len(text.encode()) for text in texts)
