"""Parts of what a run forgot and would have kept: points of a curve, recipes of reruns, what interrupted calls say."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tunesmith.config.recipe import Recipe
from tunesmith.evaluation import how_to_keep as module
from tunesmith.evaluation.forgetting_curve import (
    BASE,
    GENERAL,
    CurveOptions,
    CurvePoint,
    ForgettingCurve,
    _GeneralLoss,
    _opened,
    _point,
)
from tunesmith.evaluation.how_to_keep import DIRECTORY, FEWEST, RATES, STEPS, _Rerun, _reruns, _train
from tunesmith.evaluation.suites.forgetting import general_texts
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score
from tunesmith.run import Events, Run


def test_a_point_gains_what_the_loss_fell_and_forgot_what_that_of_general_text_rose() -> None:
    differences = {
        "loss": {"value": -0.5, "interval": [-0.75, -0.25]},
        "forgetting.general_loss": {"value": 0.125, "interval": [0.0, 0.25]},
    }
    point = _point("step-1", differences, None)
    assert point == CurvePoint("step-1", 0.5, (0.25, 0.75), 0.125, (0.0, 0.25))
    assert point.described() == {
        "name": "step-1",
        "gain": {"value": 0.5, "interval": (0.25, 0.75)},
        "forgetting": {"value": 0.125, "interval": (0.0, 0.25)},
        "score": None,
    }
    scored = _point("step-1", differences, {"value": 0.9, "interval": [0.8, 1.0], "rows": 3})
    assert (scored.score, scored.score_interval, scored.gain) == (0.9, (0.8, 1.0), 0.5)
    assert scored.described()["score"] == {"value": 0.9, "interval": (0.8, 1.0)}


def test_a_curve_is_described_by_the_names_of_its_points() -> None:
    one, two = (CurvePoint(name, 1.0, (0.0, 2.0), 0.0, (0.0, 0.0)) for name in ("one", "two"))
    curve = ForgettingCurve((one, two), (two,), two, 0.02, "nats")
    described = {
        "points": [one.described(), two.described()],
        "frontier": ["two"],
        "recommended": "two",
        "allowed": 0.02,
        "loss_unit": "nats",
        "steps": None,
        "metric": None,
        "answered": 0,
    }
    assert curve.described() == described
    nothing = ForgettingCurve((one,), (), None, 0.02, "nats", 5, "exact match", 3).described()
    assert [nothing[key] for key in ("frontier", "recommended", "steps", "metric", "answered")] == [
        [], None, 5, "exact match", 3,
    ]  # fmt: skip


def test_a_curve_is_measured_in_the_cache_and_answers_nothing_if_nothing_else_is_said(tiny_model: Path) -> None:
    options = CurveOptions()
    assert (options.data, options.general, options.tolerance, options.answered) == (None, None, 0.01, 0)
    assert (options.sampling, options.device, options.cache, options.subscribers) == (Sampling(128), "auto", True, ())
    assert (BASE, GENERAL) == ("base", "forgetting.general_loss")
    (kept,) = _opened({"a": tiny_model}, options)
    (lost,) = _opened({"b": tiny_model}, CurveOptions(concurrent=3, device="cpu", cache=False))
    assert [(each.name, each.keeps) for each in (kept, lost)] == [("a", True), ("b", False)]
    assert (lost.model.concurrent, str(lost.model.device)) == (3, "cpu")


def test_the_loss_on_general_text_is_of_its_bytes_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "prose.txt"
    file.write_text("\n\n".join(f"{'so ' * 12}{n}." for n in range(9)), encoding="utf-8")
    asked: list[Any] = []

    def scores(prompts: Any, texts: Any) -> list[Score]:
        asked.append((prompts, texts))
        return [Score(("t",), np.array([-2.0])) for _ in texts]

    subject: Any = SimpleNamespace(scores=scores)
    ((name, figure),) = _GeneralLoss(file).measure(subject, None).items()  # type: ignore[arg-type]
    texts = general_texts(file)
    assert asked == [(None, texts)]
    assert (name, figure.unit) == ("general_loss", "bits")
    assert figure.value == pytest.approx(2 * len(texts) / math.log(2) / sum(len(text.encode()) for text in texts))


# Reruns


def run_of(directory: Path, **sections: dict[str, Any]) -> Run:
    rows = directory / "rows.jsonl"
    rows.write_text(json.dumps({"question": "a", "answer": "b"}) + "\n", encoding="utf-8")
    values: dict[str, Any] = {
        "base": "embedded",
        "data": {"train": str(rows)} | sections.get("data", {}),
        "train": {"learning_rate": 1e-3, "epochs": 2} | sections.get("train", {}),
    }
    run = directory / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    return Run(run)


def test_reruns_differ_from_the_run_in_steps_rate_and_replay_only(tmp_path: Path) -> None:
    train = {"early_stopping": {"patience": 2}, "tensorboard": True, "keep_checkpoints": 4, "seed": 5}
    run = run_of(tmp_path, train=train)
    own = Recipe.load(run.directory / "recipe.yaml").model_dump(mode="json")
    found = list(_reruns(run, 10, ["größer", "two"]))
    assert [rerun.name for rerun in found] == ["rate 0.001", "rate 0.00033", "rate 0.0001", "replay 10%"]
    *rates, replay = [rerun.directory for rerun in found]
    assert [path.name for path in rates] == ["rate-1", "rate-0.33", "rate-0.1"]
    assert replay.name.startswith("replay-")
    assert {path.parent.parent for path in (*rates, replay)} == {run.directory / "how-to-keep"}
    assert rates[0].parent.name.startswith("10-steps-")
    for rerun, factor in zip(found, (1.0, 1 / 3, 0.1, 1.0), strict=True):
        values = rerun.recipe.model_dump(mode="json")
        changed = {name: value for name, value in values["train"].items() if value != own["train"][name]}
        changed.pop("learning_rate", None)
        assert changed == {
            "steps": 10, "epochs": None, "checkpoint_every": 2, "keep_checkpoints": 1, "evaluate_every": 10,
            "early_stopping": None, "tensorboard": False,
        }  # fmt: skip
        assert values["train"]["learning_rate"] == pytest.approx(1e-3 * factor)
        other = {name for name in own["data"] if values["data"][name] != own["data"][name]}
        assert other == ({"replay"} if rerun.name.startswith("replay") else set())
    data = found[-1].recipe.data
    assert (data.replay_share, data.replay) == (0.1, [str(run.directory / "how-to-keep" / f"{replay.name}.jsonl")])
    assert Path(data.replay[0]).read_text(encoding="utf-8") == '{"text": "größer"}\n{"text": "two"}\n'
    assert [rerun.name for rerun in _reruns(run, 2, [])] == [rerun.name for rerun in found[:3]]
    (first, *_) = _reruns(run, 2, [])
    assert first.recipe.train.checkpoint_every == 1


@pytest.mark.parametrize(("own", "share"), [(0.2, 0.3), (0.45, 0.5)])
def test_general_text_is_replayed_beside_what_the_run_replayed(own: float, share: float, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"text": "old"}\n', encoding="utf-8")
    run = run_of(tmp_path, data={"replay": [str(tmp_path / "old.jsonl")], "replay_share": own})
    *_, rerun = _reruns(run, 8, ["new"])
    assert rerun.recipe.data.replay_share == pytest.approx(share)
    assert [Path(path).name for path in rerun.recipe.data.replay] == ["old.jsonl", f"{rerun.directory.name}.jsonl"]
    assert rerun.name == f"replay {own + 0.1:.0%}"


def test_other_text_is_another_rerun_and_the_same_one_is_not_written_again(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    first = [rerun.directory for rerun in _reruns(run, 8, ["a"])][-1]
    file = run.directory / DIRECTORY / f"{first.name}.jsonl"
    file.write_text("kept", encoding="utf-8")
    assert [rerun.directory for rerun in _reruns(run, 8, ["a"])][-1] == first
    assert file.read_text(encoding="utf-8") == "kept"
    assert [rerun.directory for rerun in _reruns(run, 8, ["b"])][-1] != first


def rerun_in(directory: Path, *outputs: str) -> _Rerun:
    """A rerun that has begun, and finished if it has an output."""
    if outputs:
        for name in outputs:
            (directory / name).mkdir(parents=True)
        (directory / "recipe.yaml").write_text("{}", encoding="utf-8")
    return _Rerun(directory.name, directory, None)  # type: ignore[arg-type]


def test_an_interrupted_call_says_which_reruns_have_finished(tmp_path: Path) -> None:
    done, also = rerun_in(tmp_path / "rate 1", "model"), rerun_in(tmp_path / "rate 2", "adapter")
    begun, new = rerun_in(tmp_path / "rate 3", "checkpoints"), rerun_in(tmp_path / "rate 4")
    rest = "What was computed is kept, and the same command resumes."
    assert module._about_interruption([done, also, begun, new]) == (
        f"Interrupted. 2 of 4 reruns have finished: rate 1, rate 2. {rest}"
    )
    assert module._about_interruption([begun, new]) == f"Interrupted. 0 of 2 reruns have finished. {rest}"


def test_a_rerun_is_trained_or_resumed_with_progress_unless_it_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, begun = rerun_in(tmp_path / "rate 1", "model"), rerun_in(tmp_path / "rate 3", "checkpoints")
    new, called, emitted = rerun_in(tmp_path / "rate 4"), list[Any](), list[Any]()

    def steps(name: str, directory: Path, report: Any, finishes: bool) -> Any:
        called.append((name, directory))
        report({"event": "start", "step": 0})
        report({"event": "step", "step": 2, "total_steps": 9})
        return SimpleNamespace(finished=finishes)

    monkeypatch.setattr(module, "resume", lambda directory, reports: steps("resume", directory, *reports, True))
    monkeypatch.setattr(
        module, "train", lambda recipe, directory, overrides, reports: steps("train", directory, *reports, False)
    )
    events = Events(emitted.append)
    _train(done, events)
    assert (called, emitted) == ([], [])
    _train(begun, events)
    assert called == [("resume", begun.directory)]
    assert emitted == [{"event": "progress", "what": "rerun, rate 3", "done": 2, "total": 9}]
    with pytest.raises(KeyboardInterrupt):
        _train(new, events)
    assert called[1:] == [("train", new.directory)]
    assert (RATES, STEPS, FEWEST) == ((1.0, 1 / 3, 0.1), 100, 5)
