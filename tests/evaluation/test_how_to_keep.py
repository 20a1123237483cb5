"""How a run would have kept what it forgot: reruns of its recipe, which resume, and what they gain and forget."""

import json
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.evaluation import how_to_keep as module
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.forgetting_curve import CurveOptions
from tunesmith.evaluation.how_to_keep import how_to_keep, steps_of
from tunesmith.evaluation.suites.forgetting import general_texts, other_texts
from tunesmith.report.forgetting import curves_of
from tunesmith.report.html import write_report
from tunesmith.run import Run
from tunesmith.training.stages import train


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keep")
    rows = [{"question": f"{n}?", "answer": str(n % 10) * 8} for n in range(40)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe: dict[str, Any] = {
        "base": str(tiny_model),
        "data": {"train": str(directory / "rows.jsonl"), "held_out": 0.2, "cache": False},
        "method": {"kind": "full"},
        "train": {
            "steps": 8, "tokens_per_step": 512, "learning_rate": 1e-2, "precision": "fp32", "checkpoint_every": 4,
            "keep_checkpoints": 9, "seed": 3,
        },
    }  # fmt: skip
    return tunesmith.train(recipe, directory / "run").directory


@pytest.mark.long
def test_an_evaluation_has_the_curves_of_checkpoints_and_of_reruns(run: Path) -> None:
    found = evaluate(run, 1, 1, checkpoints=True, how_to_keep=True, rerun_steps=6, tolerance=0.5)
    stored = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert [point["name"] for point in stored["checkpoints"]["points"]] == ["step-000004", "step-000008"]
    assert (found["checkpoints"]["steps"], found["how_to_keep"]["steps"]) == (None, 6)
    points = {point["name"]: point for point in found["how_to_keep"]["points"]}
    assert list(points) == ["the run", "rate 0.01", "rate 0.0033", "rate 0.001", "replay 10%"]
    gains = [point["gain"]["value"] for point in points.values()]
    assert gains[0] > gains[1] > gains[2] > gains[3] > 0
    last = found["checkpoints"]["points"][-1]
    assert (last["gain"], last["forgetting"]) == (points["the run"]["gain"], points["the run"]["forgetting"])
    assert points["replay 10%"]["forgetting"]["value"] < points["rate 0.01"]["forgetting"]["value"]
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count("Gained against forgotten") == 2
    assert all(title in page for title, _ in curves_of(found))

    recipes = {path.parent.name: Recipe.load(path) for path in run.glob("how-to-keep/6-steps-*/*/recipe.yaml")}
    own = Recipe.load(run / "recipe.yaml")
    for name, rate in (("rate-1", 1e-2), ("rate-0.33", 1e-2 / 3), ("rate-0.1", 1e-3)):
        train = recipes[name].train
        assert (train.learning_rate, train.steps, train.seed) == (pytest.approx(rate), 6, 3)
        assert (recipes[name].data, recipes[name].method) == (own.data, own.method)
    (replay,) = (recipe for name, recipe in recipes.items() if name.startswith("replay"))
    assert (replay.data.replay_share, replay.train.learning_rate) == (0.1, 1e-2)
    replayed = {
        json.loads(line)["text"] for line in Path(replay.data.replay[0]).read_text(encoding="utf-8").splitlines()
    }
    assert replayed.isdisjoint(general_texts(None)), "what is measured is not trained on"


@pytest.mark.long
def test_reruns_that_have_finished_are_kept_and_one_that_was_interrupted_resumes(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prose = run.parent / "prose.txt"
    texts = (f"Paragraph {n} of a text that has nothing at all to do with the task of the rows." for n in range(8))
    prose.write_text("\n\n".join(texts), encoding="utf-8")
    assert other_texts(prose) == []
    seen: list[str] = []

    def interrupted(recipe: Recipe, directory: Path, overrides: Any, subscribers: Any) -> Run:
        seen.append(directory.name)
        if directory.name == "rate-0.33":
            tunesmith.Trainer(recipe, directory).close()  # as an interrupt before the first checkpoint leaves it
            return Run.open(directory)
        return train(recipe, directory, overrides, subscribers)

    monkeypatch.setattr(module, "train", interrupted)
    emitted: list[Any] = []
    options = CurveOptions(general=prose, subscribers=[emitted.append])
    with pytest.raises(KeyboardInterrupt):
        how_to_keep(run, options, steps=3)
    said = [event["message"] for event in emitted if event["event"] == "warning"][-1]
    assert said.startswith(
        "Interrupted. 1 of 3 reruns have finished: rate 0.01. What was computed is kept, and the same"
    )
    curve = how_to_keep(run, options, steps=3)
    assert seen == ["rate-1", "rate-0.33", "rate-0.1"], "the first was kept, and the second resumed"
    assert [point.name for point in curve.points] == ["the run", "rate 0.01", "rate 0.0033", "rate 0.001"]


def test_reruns_are_kept_by_the_content_of_the_rows(tmp_path: Path) -> None:
    rows, run = tmp_path / "rows.jsonl", Run(tmp_path / "run")
    run.directory.mkdir()
    values = {"base": "embedded", "data": {"train": str(rows)}, "train": {"learning_rate": 1e-3, "steps": 9}}
    (run.directory / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")

    def directories(text: str) -> set[Path]:
        rows.write_text(json.dumps({"question": "a", "answer": text}) + "\n", encoding="utf-8")
        return {rerun.directory for rerun in module._reruns(run, 5, ["some text"])}

    first = directories("one")
    assert len(first) == 4
    assert directories("two").isdisjoint(first)
    assert directories("one") == first


def test_reruns_are_as_long_as_the_time_allows_and_no_longer_than_the_run(tmp_path: Path) -> None:
    time = {"seconds_per_step": 0.5, "parts": {"start": 5.0}}
    events = [{"event": "start", "total_steps": 400}, {"event": "plan", "measured": {"time": time}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events), encoding="utf-8")
    asked = [(None, None), (30, None), (1000, None), (None, 100), (30, 100), (None, 1), (None, 1e6)]
    assert [steps_of(Run(tmp_path), *each) for each in asked] == [100, 30, 400, 40, 30, 5, 400]


def test_curves_are_refused_of_what_is_no_run_alone_before_anything_is_computed(tiny_model: Path) -> None:
    for option in ({"checkpoints": True}, {"how_to_keep": True}):
        with pytest.raises(UserError, match=r"are for a run beside its base\. Name one run"):
            evaluate(tiny_model, 0, suites=["latency"], **option)
