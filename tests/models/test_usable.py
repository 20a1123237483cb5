"""What a person names is found, loaded as it was trained, and tells of texts what its own forward pass says."""

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
from tunesmith.models.model_reference import ModelReference, fingerprint_of
from tunesmith.models.predict import Prediction, entities_of, predictions_of, tell, vector_of
from tunesmith.models.sentence import stored_head, write_steps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`; `adapter`, PEFT's own; `run`, with the adapter inside; `whole`, a run that moved the whole model."""
    directory = tmp_path_factory.mktemp("place")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of("llama", len(tokenizer))).bfloat16()
    for name in ("base", "whole/model"):
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
    for name in ("run", "whole", "unfinished"):
        (directory / name).mkdir(exist_ok=True)
        recipe = {"base": {"path": str(directory / "base"), "weights": "int8"}, "data": {"train": "rows.jsonl"}}
        (directory / name / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return directory


def test_a_run_an_adapter_and_a_model_are_each_found_by_their_directory(place: Path) -> None:
    base, adapter, run, whole = (ModelReference.find(str(place / name)) for name in ("base", "adapter", "run", "whole"))
    assert (base.base.path, base.adapter, base.directory, base.ending) == (
        str(place / "base"),
        None,
        place / "base",
        VOCABULARY,
    )
    assert (adapter.base.path, adapter.base.revision) == (str(place / "base"), "v2")
    assert (adapter.adapter, adapter.directory) == (place / "adapter", place / "adapter")
    assert (run.base.path, run.base.weights) == (str(place / "base"), "int8")
    assert (run.adapter, run.directory) == (place / "run" / "adapter", place / "run" / "adapter")
    assert (whole.base.path, whole.adapter, whole.directory) == (
        str(place / "whole" / "model"),
        None,
        place / "whole" / "model",
    )
    assert (run.whole().base.weights, run.whole().base.path, run.whole().adapter) == (
        "auto",
        run.base.path,
        run.adapter,
    )
    assert base.head() is adapter.head() is None
    with pytest.raises(UserError, match="unfinished is a run that has not finished"):
        ModelReference.find(str(place / "unfinished"))


def test_the_tokenizer_beside_an_adapter_goes_before_the_bases(place: Path) -> None:
    templates = {
        name: ModelReference.find(str(place / name)).tokenizer().chat_template for name in ("base", "adapter", "run")
    }
    assert templates["run"].startswith("other ")
    assert templates["base"] == templates["adapter"] == byte_tokenizer().chat_template


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_loaded_in_its_dtype_adapter_and_all_and_does_not_train(dtype: torch.dtype, place: Path) -> None:
    model = ModelReference.find(str(place / "adapter")).model(dtype, CPU)
    assert {each.dtype for each in model.parameters()} == {dtype}
    assert not model.training
    tensors = load_file(place / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B"
    own = dict(model.named_parameters())[f"{name}.default.weight"]
    assert torch.equal(own, tensors[f"{name}.weight"].to(dtype))
    held = ModelReference.find(str(place / "run")).model(dtype, CPU)
    assert any(type(each).__name__ == "QuantizedLinear" for each in held.modules())
    assert not any(type(each).__name__ == "QuantizedLinear" for each in model.modules())


def test_an_adapter_of_another_shape_is_refused_with_its_base(place: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    AutoModelForCausalLM.from_config(config_of("llama", len(tokenizer), hidden_size=16)).save_pretrained(tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "b")
    usable = ModelReference.find(str(place / "adapter"))
    other = ModelReference(
        usable.base.model_copy(update={"path": str(tmp_path / "b"), "revision": None}), usable.adapter
    )
    with pytest.raises(UserError, match=r"adapter does not fit on .*b: "):
        other.model(torch.float32, CPU)


def test_a_fingerprint_tells_an_adapter_from_its_base(place: Path) -> None:
    base, adapter, run = (fingerprint_of(str(place / name)) for name in ("base", "adapter", "run"))
    assert "adapter" not in base
    assert {name: mark for name, mark in adapter.items() if name != "adapter"} == base
    assert adapter["adapter"] == run["adapter"]


# What is told


def ending(problem: Any) -> Ending:
    return Ending("classes", ("a", "b", "c"), problem)


def test_one_class_is_told_or_all_labels_from_a_half_on_or_a_value() -> None:
    output = np.array([[0.5, 0.2, 0.75]], np.float32)
    assert predictions_of(output, ending("single_label_classification")) == [Prediction("c", 0.75)]
    assert predictions_of(output, ending("multi_label_classification")) == [Prediction("a", 0.5), Prediction("c", 0.75)]
    assert predictions_of(output * 0.9, ending("multi_label_classification")) == [Prediction("c", pytest.approx(0.675))]
    (value,) = predictions_of(np.array([[123.456]], np.float32), ending("regression"))
    assert (value.label, value.value) == ("123.5", pytest.approx(123.456, rel=1e-6))
    assert (str(Prediction("a", 0.5)), str(Prediction("PLACE", 0.5, "New York"))) == ("a", "PLACE: New York")


def test_an_entity_is_as_sure_as_its_least_sure_word_and_has_the_texts_own_words() -> None:
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
def test_words_are_tagged_at_their_first_token_as_far_as_the_model_has_room(tagger: Any) -> None:
    text = "New York, é and more words than there is room"
    tokens = byte_tokenizer()(text, return_tensors="pt", add_special_tokens=False)["input_ids"][:, :16]
    probabilities = tagger(input_ids=tokens).logits[0].softmax(-1)
    labels = ("A", "B", "C")
    words = [("New", 0), ("York", 4), (",", 8), ("é", 10), ("and", 13)]  # é is two bytes
    (found,) = tell(tagger, byte_tokenizer(), Ending("tags", labels), [text])
    kept = [(labels[int(probabilities[at].argmax())], float(probabilities[at].max()), word) for word, at in words]
    assert [(each.label, each.words) for each in found] == [(label, word) for label, _, word in kept]
    assert [each.value for each in found] == pytest.approx([value for _, value, _ in kept], abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("normalized", [True, False])
def test_a_vector_pools_the_texts_own_states(pooling: Any, normalized: bool) -> None:
    torch.manual_seed(1)
    tokenizer = word_tokenizer()
    model = AutoModel.from_config(config_of("bert", len(tokenizer), initializer_range=0.3)).eval()
    ids = tokenizer("good film w3 w9", return_tensors="pt")["input_ids"]
    states = model(input_ids=ids).last_hidden_state[0]
    wanted = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
    wanted = wanted / wanted.norm() if normalized else wanted
    ending = Ending("vectors", pooling=pooling, normalized=normalized)
    torch.testing.assert_close(vector_of(model, tokenizer, ending, "good film w3 w9"), wanted, rtol=1e-4, atol=1e-5)
    head = torch.nn.Linear(len(wanted), 3)
    told = tell(
        model,
        tokenizer,
        Ending("vectors", ("a", "b", "c"), pooling=pooling, normalized=normalized),
        ["w3", "good film w3 w9"],
        head,
    )
    probabilities = functional.softmax(head(wanted), -1)
    assert told[1] == [
        Prediction("abc"[int(probabilities.argmax())], pytest.approx(float(probabilities.max()), abs=1e-4))
    ]


def test_a_head_over_vectors_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    head = torch.nn.Linear(5, 3)
    for name, normalized in (("one", True), ("two", False)):
        (tmp_path / name).mkdir()
        write_steps(tmp_path / name, Ending("vectors", ("a", "b", "c"), normalized=normalized), 5, 64, head)
        steps = [step["path"] for step in json.loads((tmp_path / name / "modules.json").read_text())]
        assert steps == ["", "1_Pooling", *(["2_Normalize", "3_Dense"] if normalized else ["2_Dense"])]
        found = stored_head(tmp_path / name)
        assert found is not None
        assert torch.equal(found.weight, head.weight)
        assert torch.equal(found.bias, head.bias)
    assert stored_head(tmp_path) is None
