"""Model references are resolved and loaded as trained, and predictions equal the model's own forward."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import byte_tokenizer
from families import config_of
from matrix import word_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification

from tunesmith.ending import VOCABULARY, Ending
from tunesmith.errors import UserError
from tunesmith.inference.predict import Prediction, entities_of, predict, predictions_of, vector_of
from tunesmith.models.model_reference import ModelReference, fingerprint_of
from tunesmith.models.sentence_transformers_format import stored_head, write_steps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`; `adapter`, saved by PEFT; `run`, which contains the adapter; `full`, a run that trained all weights."""
    directory = tmp_path_factory.mktemp("models")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of("llama", len(tokenizer))).bfloat16()
    for name in ("base", "full/model"):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    for name in ("adapter", "run/adapter"):
        peft_model.save_pretrained(directory / name)
        config = directory / name / "adapter_config.json"
        values = {
            **json.loads(config.read_text()),
            "base_model_name_or_path": str(directory / "base"),
            "revision": "v2",
        }
        config.write_text(json.dumps(values), encoding="utf-8")
    tokenizer.chat_template = "other {{ messages[0]['content'] }}"
    tokenizer.save_pretrained(directory / "run" / "adapter")
    for name in ("run", "full", "unfinished"):
        (directory / name).mkdir(exist_ok=True)
        recipe = {"base": {"path": str(directory / "base"), "weights": "int8"}, "data": {"train": "rows.jsonl"}}
        (directory / name / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return directory


def test_a_run_an_adapter_and_a_model_are_found_by_their_directories(models: Path) -> None:
    base, adapter, run, full = (ModelReference.find(str(models / name)) for name in ("base", "adapter", "run", "full"))
    assert (base.base.path, base.adapter, base.directory, base.ending) == (
        str(models / "base"),
        None,
        models / "base",
        VOCABULARY,
    )
    assert (adapter.base.path, adapter.base.revision) == (str(models / "base"), "v2")
    assert (adapter.adapter, adapter.directory) == (models / "adapter", models / "adapter")
    assert (run.base.path, run.base.weights) == (str(models / "base"), "int8")
    assert (run.adapter, run.directory) == (models / "run" / "adapter", models / "run" / "adapter")
    assert (full.base.path, full.adapter, full.directory) == (
        str(models / "full" / "model"),
        None,
        models / "full" / "model",
    )
    stored = run.with_stored_weights()
    assert (stored.base.weights, stored.base.path, stored.adapter) == (
        "auto",
        run.base.path,
        run.adapter,
    )
    assert base.head() is adapter.head() is None
    with pytest.raises(UserError, match="unfinished is a run that has not finished"):
        ModelReference.find(str(models / "unfinished"))


def test_an_adapters_tokenizer_takes_precedence_over_the_bases(models: Path) -> None:
    templates = {
        name: ModelReference.find(str(models / name)).tokenizer().chat_template for name in ("base", "adapter", "run")
    }
    assert templates["run"].startswith("other ")
    assert templates["base"] == templates["adapter"] == byte_tokenizer().chat_template


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_and_adapter_are_loaded_in_the_dtype_and_in_evaluation_mode(dtype: torch.dtype, models: Path) -> None:
    model = ModelReference.find(str(models / "adapter")).model(dtype, CPU)
    assert {each.dtype for each in model.parameters()} == {dtype}
    assert not model.training
    tensors = load_file(models / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B"
    own = dict(model.named_parameters())[f"{name}.default.weight"]
    assert torch.equal(own, tensors[f"{name}.weight"].to(dtype))
    quantized = ModelReference.find(str(models / "run")).model(dtype, CPU)
    assert any(type(each).__name__ == "QuantizedLinear" for each in quantized.modules())
    assert not any(type(each).__name__ == "QuantizedLinear" for each in model.modules())


def test_an_adapter_of_another_shape_is_refused_with_its_base(models: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    AutoModelForCausalLM.from_config(config_of("llama", len(tokenizer), hidden_size=16)).save_pretrained(tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "b")
    reference = ModelReference.find(str(models / "adapter"))
    other = ModelReference(
        reference.base.model_copy(update={"path": str(tmp_path / "b"), "revision": None}), reference.adapter
    )
    with pytest.raises(UserError, match=r"adapter does not fit on .*b: Error\(s\) in loading state_dict"):
        other.model(torch.float32, CPU)


def test_an_adapters_fingerprint_differs_from_its_bases(models: Path) -> None:
    base, adapter, run = (fingerprint_of(str(models / name)) for name in ("base", "adapter", "run"))
    assert "adapter" not in base
    assert {name: mark for name, mark in adapter.items() if name != "adapter"} == base
    assert adapter["adapter"] == run["adapter"]


# Predictions


def ending(problem: Any) -> Ending:
    return Ending("classes", ("a", "b", "c"), problem)


def test_predictions_for_each_problem_type() -> None:
    output = np.array([[0.5, 0.2, 0.75]], np.float32)
    assert predictions_of(output, ending("single_label_classification")) == [Prediction("c", 0.75)]
    assert predictions_of(output, ending("multi_label_classification")) == [Prediction("a", 0.5), Prediction("c", 0.75)]
    assert predictions_of(output * 0.9, ending("multi_label_classification")) == [Prediction("c", pytest.approx(0.675))]
    (value,) = predictions_of(np.array([[123.456]], np.float32), ending("regression"))
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
    (predictions,) = predict(tagger, byte_tokenizer(), Ending("tags", labels), [text])
    kept = [(labels[int(probabilities[at].argmax())], float(probabilities[at].max()), word) for word, at in words]
    assert [(each.label, each.words) for each in predictions] == [(label, word) for label, _, word in kept]
    assert [each.value for each in predictions] == pytest.approx([value for _, value, _ in kept], abs=1e-5)


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
    ending = Ending("vectors", pooling=pooling, normalized=normalized)
    torch.testing.assert_close(vector_of(model, tokenizer, ending, "good film w3 w9"), expected, rtol=1e-4, atol=1e-5)
    head = torch.nn.Linear(len(expected), 3)
    predictions = predict(
        model,
        tokenizer,
        Ending("vectors", ("a", "b", "c"), pooling=pooling, normalized=normalized),
        ["w3", "good film w3 w9"],
        head,
    )
    probabilities = functional.softmax(head(expected), -1)
    assert predictions[1] == [
        Prediction("abc"[int(probabilities.argmax())], pytest.approx(float(probabilities.max()), abs=1e-4))
    ]


def test_a_head_on_vectors_is_read_back_as_written(tmp_path: Path) -> None:
    head = torch.nn.Linear(5, 3)
    for name, normalized in (("one", True), ("two", False)):
        (tmp_path / name).mkdir()
        write_steps(tmp_path / name, Ending("vectors", ("a", "b", "c"), normalized=normalized), 5, 64, head)
        steps = [step["path"] for step in json.loads((tmp_path / name / "modules.json").read_text())]
        assert steps == ["", "1_Pooling", *(["2_Normalize", "3_Dense"] if normalized else ["2_Dense"])]
        stored = stored_head(tmp_path / name)
        assert stored is not None
        assert torch.equal(stored.weight, head.weight)
        assert torch.equal(stored.bias, head.bias)
    assert stored_head(tmp_path) is None
