"""Text classification: training, the saved format, and errors that name malformed rows."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matrix import make_bases
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import collate
from tunesmith.data.prepare import prepare, resolve
from tunesmith.errors import UserError
from tunesmith.heads.sequence_classification import SequenceClassificationHead, class_logits
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.predict import predict
from tunesmith.metrics.prediction_metrics import PREDICTION_METRICS, Predictions
from tunesmith.models.attention import use_document_attention
from tunesmith.models.load import load_model, load_tokenizer


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases")
    make_bases(directory)
    return directory


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "reviews.csv"
    lines = [f"{('bad', 'good')[n % 2]} film w{n % 11} w{n % 5},{('no', 'yes')[n % 2]}" for n in range(80)]
    file.write_text("text,category\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


def recipe_of(base: Path, rows: Path, **changes: Any) -> dict[str, Any]:
    return {
        "base": str(base),
        "data": {"train": str(rows), "held_out": 0.25, **changes.pop("data", {})},
        "method": changes.pop("method", "full"),
        "objective": {"kind": "classification", **changes.pop("objective", {})},
        "train": {"steps": 12, "tokens_per_step": 256, "precision": "fp32", **changes},
    }


@pytest.fixture(scope="module")
def trained(bases: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a classifier on a family, trained once."""
    directory = tmp_path_factory.mktemp("trained")

    @cache
    def run_of(family: str) -> Path:
        recipe = recipe_of(bases / family, rows, steps=30, learning_rate=3e-3)
        return tunesmith.train(recipe, directory / family).directory

    return run_of


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_trained_classifier_loads_in_transformers_and_predicts_the_classes(
    family: str, trained: Callable[[str], Path]
) -> None:
    run = trained(family)
    result = tunesmith.evaluate(run)
    assert result["models"]["tuned"]["accuracy"]["value"] > 0.9
    theirs = AutoModelForSequenceClassification.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert theirs.config.id2label == {0: "no", 1: "yes"}
    inputs = tokenizer("good film w3 w3", return_tensors="pt")
    probabilities = torch.softmax(theirs(input_ids=inputs["input_ids"]).logits[0], -1)
    reference = ModelReference.find(str(run))
    ours = predict(
        reference.model(torch.float32, torch.device("cpu")),
        reference.tokenizer(),
        reference.head,
        ["good film w3 w3"],
    )[0]
    assert ours[0].label == theirs.config.id2label[int(probabilities.argmax())]
    assert ours[0].value == pytest.approx(float(probabilities.max()), abs=1e-4)


def test_cached_features_of_a_frozen_body_train_the_same_head(
    bases: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(bases / "bert", rows, method="layers", learning_rate=1e-2)
    cached = tunesmith.train(recipe, tmp_path / "cached")
    monkeypatch.setattr(SequenceClassificationHead, "reads_features", lambda self, model: False)
    uncached = tunesmith.train(recipe, tmp_path / "uncached")

    def losses(run: Any) -> list[float]:
        return [event["loss"] for event in run.events() if event["event"] == "evaluation"]

    np.testing.assert_allclose(losses(cached), losses(uncached), rtol=1e-4)
    assert losses(cached)[-1] < losses(cached)[0]
    seconds = {
        run: sum(event["seconds"] for event in run.events() if event["event"] == "step") for run in (cached, uncached)
    }
    assert seconds[cached] > 0


def test_labels_come_from_the_training_rows_or_from_the_recipe(bases: Path, rows: Path) -> None:
    recipe = Recipe.load(recipe_of(bases / "bert", rows))
    assert resolve(recipe).objective.labels == ["no", "yes"]
    named = Recipe.load(recipe_of(bases / "bert", rows, objective={"labels": ["yes", "no"]}))
    assert resolve(named).objective.labels == ["yes", "no"]
    wrong = Recipe.load(recipe_of(bases / "bert", rows, objective={"labels": ["yes", "maybe"]}))
    with pytest.raises(UserError, match=r"reviews.csv row 1: its label 'no' is not in objective.labels"):
        prepare(wrong, load_tokenizer(wrong.base))


def test_truncated_text_keeps_its_special_tokens_and_its_class(bases: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(
        "".join(json.dumps({"text": "w1 " * 30, "label": label}) + "\n" for label in ("a", "b")), encoding="utf-8"
    )
    recipe = resolve(Recipe.load(recipe_of(bases / "bert", file, data={"max_length": 10, "held_out": 0.0})))
    tokenizer = load_tokenizer(recipe.base)
    prepared = prepare(recipe, tokenizer)
    assert prepared.report.truncated == 2
    ids, loss_mask = prepared.train[1]
    assert len(ids) == 10
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert loss_mask.tolist() == [False] * 9 + [True]
    assert prepared.train.targets_of(1).tolist() == [1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "  ", "label": "a"}, "the text is empty"),
        ({"text": "w1", "label": None}, "label"),
        ({"text": "w1", "label": ["a"]}, "not a class name or number"),
        ({"text": 3, "label": "a"}, "text is"),
    ],
)
def test_row_without_text_or_class_is_rejected_with_its_number(
    row: dict[str, Any], message: str, bases: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    good = [{"text": f"w{n}", "label": "ab"[n % 2]} for n in range(4)]
    file.write_text("".join(json.dumps(one) + "\n" for one in [*good, row]), encoding="utf-8")
    with pytest.raises(UserError, match=message) as refused:
        resolve(Recipe.load(recipe_of(bases / "bert", file)))
    assert "row 5" in str(refused.value)


def test_encoder_for_text_generation_and_single_class_are_refused(bases: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r".bert. is an encoder; objective: text needs a decoder"):
        tunesmith.train(
            {"base": str(bases / "bert"), "data": {"train": str(rows), "format": "text"}, "objective": "text"},
            tmp_path / "r",
        )
    file = tmp_path / "one.jsonl"
    file.write_text('{"text": "w1", "label": "a"}\n' * 3, encoding="utf-8")
    with pytest.raises(UserError, match="two classes or more, but the training rows have only 'a'"):
        tunesmith.train(recipe_of(bases / "bert", file), tmp_path / "r")


def test_class_weights_scale_the_training_loss_only(bases: Path, tmp_path: Path) -> None:
    file = tmp_path / "rare.csv"
    file.write_text("text,label\n" + "".join(f"w{n},{'rare' if n % 10 == 0 else 'often'}\n" for n in range(100)))
    recipe = Recipe.load(recipe_of(bases / "bert", file, objective={"class_weights": "balanced"}))
    balanced = resolve(recipe).objective
    assert balanced.class_weights == pytest.approx({"often": 100 / (2 * 90), "rare": 100 / (2 * 10)})
    named = resolve(Recipe.load(recipe_of(bases / "bert", file, objective={"class_weights": {"rare": 3.0}}))).objective
    model = load_model(recipe.base, torch.float32, head=balanced.head)
    use_document_attention(model)
    table = prepare(resolve(recipe), load_tokenizer(recipe.base)).train
    batch = collate(table, range(20))
    weight = torch.tensor([1.0, 3.0])
    classes = batch.labels[:, 0].long()
    expected = torch.nn.functional.cross_entropy(class_logits(model, batch), classes, weight, reduction="sum")
    torch.testing.assert_close(named.build().loss(model, batch), expected)
    assert named.build().losses(model, batch).sum() != expected, "evaluation uses no class weights"
    with pytest.raises(UserError, match=r"class_weights: 'seldom' is not a class\. The classes are: often, rare"):
        resolve(Recipe.load(recipe_of(bases / "bert", file, objective={"class_weights": {"seldom": 3.0}})))


def test_macro_f1_and_calibration_error_equal_their_definitions(trained: Callable[[str], Path]) -> None:
    generator = np.random.default_rng(0)
    probabilities, expected = generator.dirichlet(np.ones(5), 300), generator.integers(0, 5, 300)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    predictions = Predictions(
        [row[None] for row in probabilities], [np.array([[label]]) for label in expected], tuple("abcde")
    )
    metrics = {
        name: PREDICTION_METRICS[name].of(predictions)(np.arange(300)) for name in ("macro_f1", "calibration_error")
    }
    assert metrics["macro_f1"] == pytest.approx(f1_score(expected, predicted, average="macro"))
    bins = [(confidence >= low / 15) & (confidence < (low + 1) / 15) for low in range(15)]
    correct = predicted == expected
    gaps = [inside.mean() * abs(correct[inside].mean() - confidence[inside].mean()) for inside in bins if inside.any()]
    assert metrics["calibration_error"] == pytest.approx(sum(gaps))
    result = tunesmith.evaluate(trained("bert"))
    for side in ("base", "tuned"):
        low, high = result["models"][side]["macro_f1"]["interval"]
        assert low <= result["models"][side]["macro_f1"]["value"] <= high
    assert result["differences"]["tuned"]["macro_f1"]["value"] > 0
    confusion = np.array(result["classification"]["tuned"]["confusion"])
    assert confusion.diagonal().sum() / confusion.sum() == result["models"]["tuned"]["accuracy"]["value"]
    assert result["figures"]["calibration_error"]["better"] == "lower"
