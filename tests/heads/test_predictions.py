"""Predictions for texts: classes, labels, values, entities and vectors, and how they are described."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import byte_tokenizer
from families import config_of
from matrix import word_tokenizer
from small_models import method_of, small_model
from torch.nn import functional
from transformers import AutoModel, AutoModelForTokenClassification

from tunesmith.config.head import Head
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.embedding import EmbeddingClassifierHead, EmbeddingHead
from tunesmith.heads.prediction import Prediction, inputs_of
from tunesmith.heads.sentence_transformers_format import stored_classifier, write_steps
from tunesmith.heads.sequence_classification import MultiLabelHead, RegressionHead, SequenceClassificationHead
from tunesmith.heads.token_classification import TokenClassificationHead, entities_of
from tunesmith.inference.predict import predict, vector_of


def test_predictions_for_each_problem_type() -> None:
    output = np.array([0.5, 0.2, 0.75], np.float32)
    several = MultiLabelHead(("a", "b", "c"))
    assert SequenceClassificationHead(("a", "b", "c")).predictions(output) == [Prediction("c", 0.75)]
    assert several.predictions(output) == [Prediction("a", 0.5), Prediction("c", 0.75)]
    assert several.predictions(output * 0.9) == [Prediction("c", pytest.approx(0.675))]
    (value,) = RegressionHead().predictions(np.array([123.456], np.float32))
    assert (value.label, value.value) == ("123.5", pytest.approx(123.456, rel=1e-6))
    assert (str(Prediction("a", 0.5)), str(Prediction("PLACE", 0.5, "New York"))) == ("a", "PLACE: New York")


def test_an_entity_has_its_words_minimum_probability_and_original_text() -> None:
    text = "in  New York, Ann"
    spans = [(0, 2), (4, 7), (8, 12), (14, 17)]
    labels = ("O", "B-PLACE", "I-PLACE", "B-PERSON")
    probabilities = np.array(
        [[0.9, 0.1, 0, 0], [0.1, 0.8, 0.05, 0.05], [0.2, 0.1, 0.6, 0.1], [0.3, 0, 0, 0.7]], np.float32
    )
    assert list(entities_of(text, spans, probabilities, labels)) == [
        Prediction("PLACE", pytest.approx(0.6), "New York"),
        Prediction("PERSON", pytest.approx(0.7), "Ann"),
    ]


CLASSES = SequenceClassificationHead(("calm", "bold", "dry"))
SEVERAL = MultiLabelHead(CLASSES.labels)
ENTITIES = TokenClassificationHead(("O", "B-PLACE", "I-PLACE", "B-PERSON"))
FEW_SHOT = EmbeddingClassifierHead(CLASSES.labels)


@pytest.mark.parametrize(
    ("head", "output", "words"),
    [
        (CLASSES, [[0.2, 0.5, 0.3]], "bold"),
        (SEVERAL, [[0.6, 0.2, 0.5]], "calm, dry"),
        (SEVERAL, [[0.1, 0.2, 0.49]], "(none)"),
        (RegressionHead(), [[123.456]], "123.5"),
        (ENTITIES, np.eye(4)[[0, 1, 2, 0, 3]], "PLACE (words 2–3), PERSON (word 5)"),
        (ENTITIES, np.eye(4)[[0, 0]], "(none)"),
        (FEW_SHOT, [[0.2, 0.1, 0.7]], "dry"),
    ],
    ids=str,
)
def test_an_output_is_described_in_words(head: Head, output: Any, words: str) -> None:
    assert head.describe(np.array(output, np.float32)) == words


@pytest.mark.parametrize(
    ("head", "target", "words"),
    [
        (CLASSES, [1.0], "bold"),
        (SEVERAL, [1.0, 0.0, 1.0], "calm, dry"),
        (SEVERAL, [0.0, 0.0, 0.0], "(none)"),
        (RegressionHead(), [-2.5], "-2.5"),
        (ENTITIES, [1.0, 2.0, 0.0, 3.0], "PLACE (words 1–2), PERSON (word 4)"),
        (ENTITIES, [0.0], "(none)"),
        (FEW_SHOT, [2.0], "dry"),
        (EmbeddingHead(), [], None),
        (CausalLMHead(), [], None),
    ],
    ids=str,
)
def test_a_target_is_described_as_an_output_would_be(head: Head, target: list[float], words: str | None) -> None:
    assert head.describe_target(np.array(target, np.float32)) == words


@pytest.fixture(scope="module")
def tagger() -> Any:
    torch.manual_seed(1)
    config = config_of("bert", len(byte_tokenizer()), initializer_range=0.3, max_position_embeddings=16)
    config.num_labels = 3
    return AutoModelForTokenClassification.from_config(config).eval()


@torch.no_grad()
def test_words_are_tagged_at_their_first_token_within_the_context(tagger: Any) -> None:
    text = "New York, é and more words than there is room"
    tokens = byte_tokenizer()(text, return_tensors="pt", add_special_tokens=False)["input_ids"][:, :16]
    probabilities = tagger(input_ids=tokens).logits[0].softmax(-1)
    labels = ("A", "B", "C")
    words = [("New", 0), ("York", 4), (",", 8), ("é", 10), ("and", 13)]  # é is two bytes
    (predictions,) = predict(tagger, byte_tokenizer(), TokenClassificationHead(labels), [text])
    kept = [(labels[int(probabilities[at].argmax())], float(probabilities[at].max()), word) for word, at in words]
    assert [(each.label, each.words) for each in predictions] == [(label, word) for label, _, word in kept]
    assert [each.value for each in predictions] == pytest.approx([value for _, value, _ in kept], abs=1e-5)


def test_a_texts_inputs_are_ids_and_a_mask_and_special_tokens_in_it_are_split() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    inputs = inputs_of(small_model("distilbert", CLASSES), tokenizer, "a<|im_end|>")
    expected = tokenizer.convert_tokens_to_ids(list("a<|im_end|>"))
    assert {name: values.tolist() for name, values in inputs.items()} == {
        "input_ids": [expected],
        "attention_mask": [[1] * len(expected)],
    }


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize(("family", "first"), [("bert", 0), ("roberta", 1)])
def test_a_long_text_is_cut_to_the_positions_that_virtual_tokens_leave(family: str, first: int, kind: str) -> None:
    tokenizer, text = byte_tokenizer(), "abcdefghijklmnopqrstuvwxyz"
    more = {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    model = method_of(kind, tokens=5).apply(small_model(family, CLASSES, torch.float32, 1, **more), seed=0).eval()
    model.get_base_model().set_attn_implementation("eager")
    room = 16 - 5 - first
    whole, fitting, shorter = predict(model, tokenizer, CLASSES, [text, text[:room], text[: room - 1]])
    assert whole == fitting != shorter


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("normalized", [True, False])
def test_a_vector_pools_the_texts_hidden_states(pooling: Any, normalized: bool) -> None:
    torch.manual_seed(1)
    tokenizer = word_tokenizer()
    model = AutoModel.from_config(config_of("bert", len(tokenizer), initializer_range=0.3)).eval()
    ids = tokenizer("good film w3 w9", return_tensors="pt")["input_ids"]
    states = model(input_ids=ids).last_hidden_state[0]
    expected = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
    expected = expected / expected.norm() if normalized else expected
    head = EmbeddingHead(pooling=pooling, normalized=normalized)
    torch.testing.assert_close(vector_of(model, tokenizer, head, "good film w3 w9"), expected, rtol=1e-4, atol=1e-5)
    classifier = torch.nn.Linear(len(expected), 3)
    fitted = EmbeddingClassifierHead(("a", "b", "c"), pooling=pooling, normalized=normalized).with_classifier(
        classifier
    )
    predictions = predict(model, tokenizer, fitted, ["w3", "good film w3 w9"])
    probabilities = functional.softmax(classifier(expected), -1)
    assert predictions[1] == [
        Prediction("abc"[int(probabilities.argmax())], pytest.approx(float(probabilities.max()), abs=1e-4))
    ]


def test_a_head_on_vectors_is_read_back_as_written(tmp_path: Path) -> None:
    classifier = torch.nn.Linear(5, 3)
    for name, normalized in (("one", True), ("two", False)):
        (tmp_path / name).mkdir()
        write_steps(tmp_path / name, "mean", normalized, 5, 64, classifier)
        steps = [step["path"] for step in json.loads((tmp_path / name / "modules.json").read_text())]
        assert steps == ["", "1_Pooling", *(["2_Normalize", "3_Dense"] if normalized else ["2_Dense"])]
        stored = stored_classifier(tmp_path / name)
        assert stored is not None
        assert torch.equal(stored.weight, classifier.weight)
        assert torch.equal(stored.bias, classifier.bias)
    assert stored_classifier(tmp_path) is None


def test_a_stored_classifier_of_vectors_without_its_layer_is_refused() -> None:
    model, tokenizer = AutoModel.from_config(config_of("bert", 64)).eval(), word_tokenizer()
    with pytest.raises(UserError, match=r"the classifier is missing .* Copy the complete directory"):
        predict(model, tokenizer, EmbeddingClassifierHead(("a", "b")), ["w3"])
