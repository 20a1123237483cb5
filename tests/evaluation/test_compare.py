"""Base and tuned model compared: the figures equal their definitions, and training improves them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import prepare
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.inference.held_out import RowLosses
from tunesmith.metrics import METRICS, Metric, scores
from tunesmith.metrics.text import exact_match, first_word, rouge_l
from tunesmith.models.load import load_tokenizer
from tunesmith.statistics.intervals import mean_with_interval


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model answers every question with `It is …`."""
    directory = tmp_path_factory.mktemp("trained")
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}, of course."} for n in range(60)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(directory / "rows.jsonl"), "held_out": 0.2},
        "method": {"kind": "full"},
        "train": {"steps": 60, "tokens_per_step": 1024, "learning_rate": 1e-2, "precision": "fp32"},
    }
    return tunesmith.train(recipe, directory / "run").directory


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may evaluate or break."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_evaluation_shows_the_improvement_over_the_base(run: Path, tiny_model: Path) -> None:
    events: list[dict] = []
    result = evaluate(run, rows=5, max_new_tokens=30, subscribers=[events.append])
    assert result == json.loads(
        (run / "evaluation.json").read_text(encoding="utf-8"), object_hook=_lists_as_tuples(result)
    )
    base, tuned = (result["models"][model] for model in ("base", "tuned"))
    assert tuned["loss"]["value"] < base["loss"]["value"] - 1
    loss = result["differences"]["tuned"]["loss"]
    assert (loss["interval"][1] < 0, loss["verdict"], result["reference"]) == (True, "better", "base")
    assert tuned["first_word"]["value"] == 1.0, "each answer starts with It"
    assert len(result["samples"]) == 5
    assert result["samples"][0]["expected"].startswith("It is")
    rows = result["rows"]
    progress = [(event["what"], event["done"], event["total"]) for event in events if event["event"] == "progress"]
    ends = ("base: loss", "base: answers", "tuned: loss", "tuned: answers")
    assert [each for each in progress if each[1] in (0, each[2])] == [
        *(("base: loss", done, rows) for done in (0, rows)),
        *(("base: answers", done, 5) for done in (0, 5)),
        *(("tuned: loss", done, rows) for done in (0, rows)),
        *(("tuned: answers", done, 5) for done in (0, 5)),
    ]
    assert progress == sorted(progress, key=lambda each: (ends.index(each[0]), each[1]))  # answers end at any step

    recipe = Recipe.load(run / "recipe.yaml")
    table = prepare(recipe, load_tokenizer(recipe.base)).held_out
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    losses = []
    for row in range(len(table)):
        ids, loss_mask = (torch.tensor(np.array(array)) for array in table[row])
        labels = ids.long().masked_fill(~loss_mask, -100)
        count = (labels[1:] != -100).sum()
        losses.append(model(input_ids=ids[None], labels=labels[None]).loss.item() * count.item())
    assert base["loss"]["value"] == pytest.approx(sum(losses) / result["loss_tokens"], rel=1e-5)


def test_each_sides_figures_are_emitted_as_soon_as_they_are_known(run: Path) -> None:
    events: list[dict] = []
    result = evaluate(run, rows=5, max_new_tokens=3, subscribers=[events.append])
    order = [event["what"] for event in events if event["event"] == "progress" and event["done"] == event["total"]]
    assert [event.get("what") for event in events if event.get("done") != 0] == [
        step for what in order for step in (what, None)
    ]
    emitted = [event for event in events if event["event"] == "figures"]
    assert [event["model"] for event in emitted] == ["base", "base", "tuned", "tuned"]
    for (model, figures), (loss, answers) in zip(result["models"].items(), (emitted[:2], emitted[2:]), strict=True):
        assert set(loss["figures"]) == {"loss", "perplexity"}
        assert set(answers["figures"]) == set(figures) - set(loss["figures"])
        for name, entry in (loss["figures"] | answers["figures"]).items():
            assert entry == figures[name] | result["figures"][name]
        assert (loss["model"], loss["fold"]) == (model, None)


def test_all_rows_are_answered_without_a_limit_and_scored_by_own_metrics(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows(450)), "held_out": 0.5},
        "train": {"steps": 1, "tokens_per_step": 128, "precision": "fp32"},
    }
    run = tunesmith.train(recipe, tmp_path / "run").directory
    own = {"length": Metric("length", "at most a character", lambda answer, expected: float(len(answer) < 2))}
    result = evaluate(run, rows=None, max_new_tokens=1, metrics=own)
    assert result["generated_rows"] == result["rows"] > 200
    assert set(result["models"]["tuned"]) == {"loss", "perplexity", "length"}
    assert set(result["differences"]["tuned"]) == {"loss", "length"}


@pytest.mark.long
def test_events_of_folds_give_the_fold(tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path) -> None:
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows()), "folds": 2},
        "train": {"steps": 1, "tokens_per_step": 128, "precision": "fp32"},
    }
    tunesmith.train(recipe, tmp_path / "folds")
    events: list[dict] = []
    result = evaluate(tmp_path / "folds", rows=5, max_new_tokens=1, subscribers=[events.append])
    assert result["generated_rows"] == 6
    sides = [(event["model"], event["fold"]) for event in events if event["event"] == "figures"]
    assert sides == [(side, fold) for fold in (1, 2) for side in ("base", "base", "tuned", "tuned")]
    assert "base: answers, fold 2" in {event.get("what") for event in events}
    everything = evaluate(tmp_path / "folds", rows=None, max_new_tokens=1)
    assert everything["generated_rows"] == everything["rows"]


def _lists_as_tuples(result: dict):
    """JSON has no tuples; intervals are pairs."""

    def convert(values: dict) -> dict:
        return {key: tuple(value) if "interval" in key else value for key, value in values.items()}

    return convert


def test_unfinished_run_is_not_evaluated(run: Path) -> None:
    (run / "model").rename(run / "moved")
    with pytest.raises(UserError, match=r"has not finished. Resume it: tunesmith train --resume"):
        evaluate(run)


def test_metrics_of_answers_equal_their_definitions() -> None:
    assert exact_match("Return the path. ", "return the path") == 1
    assert exact_match("Return a path", "Return the path") == 0
    assert first_word("Return a path.", "return, if any") == 1
    assert first_word("", "Return") == 0
    assert rouge_l("return the copied file", "return the file") == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert scores(METRICS["exact_match"], ["a", "b"], ["a", "c"]).tolist() == [1, 0]


def test_interval_of_a_share_contains_the_true_share_as_often_as_promised() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = mean_with_interval((generator.random(60) < 0.3).astype(float))[1]
        covered += low <= 0.3 <= high
    assert 175 <= covered <= 199  # 95 % of 200; shares have Wilson's interval, see test_figures.py


def test_paired_difference_is_tighter_than_two_separate_intervals() -> None:
    generator = np.random.default_rng(0)
    counts = np.full(100, 10)
    hard = generator.normal(30, 10, 100)
    base, tuned = RowLosses(hard, counts), RowLosses(hard - 1 + generator.normal(0, 0.5, 100), counts)
    value, (low, high) = base.difference(tuned)
    assert value == pytest.approx(tuned.loss - base.loss)
    assert low < -0.1 < high < -0.05
    assert base.interval()[0] < tuned.loss


def test_share_of_hits_is_uncertain_even_if_every_row_is_a_hit() -> None:
    for hits, rows in ((32, 32), (0, 8), (7, 10)):
        theirs = binomtest(hits, rows).proportion_ci(method="wilson")
        value, interval = mean_with_interval(np.array([1.0] * hits + [0.0] * (rows - hits)))
        assert (value, interval) == (hits / rows, pytest.approx((theirs.low, theirs.high), abs=1e-6))
    assert mean_with_interval(np.array([0.2, 0.2, 0.2]))[1] == pytest.approx((0.2, 0.2))
