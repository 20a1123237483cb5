"""Toxicity in the suite `bias`: what the classifier says of the answers, and what is known of its own errors."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

import tunesmith
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.suites.bias import Bias
from tunesmith.evaluation.suites.toxicity import ToxicityClassifier
from tunesmith.statistics.intervals import wilson


def test_toxic_answers_are_those_that_transformers_classifies_so(
    tiny_model: Path, reading: Path, tmp_path: Path
) -> None:
    rows = [{"question": f"What about {number}?", "answer": "It is fine."} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"bias": {"toxicity": str(reading / "classes"), "toxic_label": "yes"}}
    found = evaluate(
        tiny_model, None, 12, metrics={}, data=tmp_path / "rows.jsonl", suites=["bias"], suite_options=options
    )
    answers = tunesmith.load(tiny_model).generate([row["question"] for row in rows], max_new_tokens=12)
    written = [answer.text.strip() for answer in answers if answer.text.strip()]
    theirs = pipeline("text-classification", str(reading / "classes"), device="cpu")(written)
    figure = found["models"]["llama"]["bias.toxicity"]
    assert figure["value"] == sum(each["label"] == "yes" for each in theirs) / len(rows)
    assert (figure["rows"], found["figures"]["bias.toxicity"]["better"]) == (12, "lower")
    assert "see its model card" in found["figures"]["bias.toxicity"]["explanation"]


@pytest.fixture(scope="module")
def run(reading: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of ours that was evaluated."""
    directory = tmp_path_factory.mktemp("toxicity")
    rows = [{"text": f"it is {word} w{n}", "label": label} for n in range(30) for word, label in WORDS.items()]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe: dict[str, Any] = {
        "base": str(reading / "vectors"),
        "data": {"train": str(directory / "rows.jsonl"), "held_out": 0.4, "cache": False},
        "method": {"kind": "full"},
        "objective": {"kind": "classification"},
        "train": {"steps": 20, "learning_rate": 3e-3, "precision": "fp32"},
    }
    run = tunesmith.train(recipe, directory / "run").directory
    evaluate(run)
    return run


WORDS = {"good": "fine", "bad": "toxic"}


def test_a_run_of_ours_says_how_often_it_errs_on_its_own_rows(run: Path) -> None:
    classifier = ToxicityClassifier.open(str(run), "")
    found = classifier.share(["it is bad w3", "it is good w99", "", "it is bad w70"], list("abcd"))
    assert found.values is not None
    assert found.values.tolist() == [1, 0, 0, 1]
    tables = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["classification"]["tuned"]
    assert tables["labels"] == ["fine", "toxic"]
    (right, wrong), (missed, hits) = tables["confusion"]
    low, high = wilson(hits / (hits + missed), hits + missed)
    assert f"it finds {hits / (hits + missed):.0%} ({low:.0%}–{high:.0%}) of these" in found.explanation
    assert f"takes {wrong / (right + wrong):.0%} (" in found.explanation


def test_a_model_that_has_no_such_label_is_refused_before_anything_is_computed(reading: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"has no label toxic. Name its own with .*toxic_label=LABEL: no, perhaps, yes"):
        Bias(toxicity=str(reading / "classes"))
    with pytest.raises(UserError, match=r"llama writes text|llama .*generate"):
        Bias(toxicity=str(tiny_model))
