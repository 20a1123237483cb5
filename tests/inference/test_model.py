"""`tunesmith.load`: what every command takes, as one object that generates, chats, classifies, embeds and scores."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import byte_tokenizer
from combinations import few
from families import config_of
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from small_models import method_of, randomize
from transformers import AutoModelForCausalLM, AutoTokenizer
from writing import answers

import tunesmith
from tunesmith.demo.side_by_side import SideBySide
from tunesmith.errors import UserError
from tunesmith.inference.generate import Generator
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.sampling import Sampling


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> tunesmith.Model:
    return tunesmith.load(str(tiny_model), precision="fp32")


def test_generate_answers_as_the_engine_does(model: tunesmith.Model) -> None:
    questions = ["Hi", "What is 3 + 3?"]
    found = model.generate(questions, system="Be short.", max_new_tokens=5, temperature=0.8, top_p=0.9, seed=4)
    chats = [({"role": "system", "content": "Be short."}, {"role": "user", "content": each}) for each in questions]
    loaded = model.reference.model(torch.float32, torch.device("cpu"))
    expected = answers(loaded, model.tokenizer, chats, Sampling(5, 0.8, 0.9, seed=4))
    assert [answer.text.strip() for answer in found] == expected
    (alone,) = tunesmith.generate(model.name, "Hi", max_new_tokens=3)
    assert tunesmith.load(model.name).generate("Hi", max_new_tokens=3)[0].tokens == alone.tokens
    pieces: list[str] = []
    turns = [{"role": "user", "content": "Hi"}]
    answer = model.chat(turns, write=pieces.append, max_new_tokens=5, temperature=0)
    assert answer == "".join(pieces).strip() == model.generate("Hi", max_new_tokens=5)[0].text.strip()
    assert model.generate("ab", raw=True, max_new_tokens=3)[0].tokens != alone.tokens


def test_scores_are_the_log_probabilities_of_transformers(model: tunesmith.Model, tiny_model: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = ["A list is a sequence.", "x", "A fish."]
    for text, score in zip(texts, model.score(texts), strict=True):
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = theirs(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        np.testing.assert_allclose(score.log_probabilities, expected.numpy(), atol=1e-5)
        assert list(score.tokens) == tokenizer.convert_ids_to_tokens(ids[0, 1:])
    one, other = model.score("So."), model.score(["So.", "A longer text beside it."])
    np.testing.assert_allclose(one[0].log_probabilities, other[0].log_probabilities, atol=1e-5)


def test_the_score_of_an_answer_is_what_training_minimizes(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows(4)), "held_out": 0},
        "train": {"steps": 1, "tokens_per_step": 1000, "precision": "fp32"},
    }
    model = tunesmith.load(str(tiny_model), precision="fp32")
    numbers = range(4)
    scores = model.score([f"What is {n} + {n}?" for n in numbers], [f"It is {2 * n}, of course." for n in numbers])
    with tunesmith.Trainer(recipe, tmp_path / "run") as trainer:
        loss = trainer.forward_backward(list(numbers))
        assert -sum(score.total for score in scores) == pytest.approx(loss, rel=1e-5)
        tokens = sum(len(score.tokens) for score in scores)
        assert tokens == trainer.rows.loss_tokens
    assert scores[0].mean == pytest.approx(scores[0].total / len(scores[0].tokens))


def test_what_a_model_cannot_do_is_refused_before_its_weights_are_loaded(model: tunesmith.Model) -> None:
    fresh = tunesmith.load(model.name)
    for call, refusal in ((fresh.classify, "does not classify texts"), (fresh.embed, "does not embed texts")):
        with pytest.raises(UserError, match=f"{refusal}. Use it with: tunesmith generate"):
            call(["a"])
    assert not {"model", "generator"} & vars(fresh).keys()
    with pytest.raises(UserError, match="2 completions for 1 prompts"):
        fresh.score(["a"], ["b", "c"])
    with pytest.raises(UserError, match=r"holds 512\. Shorten it"):
        model.score(["a" * 600])


def test_generate_passes_every_option_on(model: tunesmith.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []

    def record(
        texts: list[str], sampling: Sampling, *, adapter: str | None, n: int, draft: str | None
    ) -> list[tunesmith.Generation]:
        seen.append((texts, sampling, adapter, n, draft))
        return []

    monkeypatch.setattr(model.generator, "continuations", record)
    values: dict[str, Any] = {
        "max_new_tokens": 7,
        "temperature": 0.3,
        "top_p": 0.8,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.6,
        "logit_bias": {3: 2.0},
        "seed": 9,
        "grammar": "start: A",
        "regex": "a+",
    }
    model.generate("a", raw=True, stop="x", schema={"type": "null"}, n=3, adapter="mine", draft="small", **values)
    model.generate(["a", "b"], raw=True, stop=["x", "y"], schema='{"type":"null"}')
    assert seen == [
        (["a"], Sampling(**values, stop=("x",), schema='{"type": "null"}'), "mine", 3, "small"),
        (["a", "b"], Sampling(stop=("x", "y"), schema='{"type":"null"}'), None, 1, "lookup"),
    ]


def test_caches_in_int8_take_a_quarter_of_the_memory_and_change_scores_little(
    model: tunesmith.Model, tmp_path: Path
) -> None:
    narrow = tunesmith.load(model.name, precision="fp32", cache="int8")
    text = "A list is a sequence of values, in order." * 3
    (wide,), (close,) = model.score(text), narrow.score(text)
    sizes = [each.generator.paged.model.caches[0].bytes_per_page for each in (narrow, model)]
    assert sizes[0] < 0.4 * sizes[1], "a head of 8 numbers has a scale of four bytes"
    difference = np.abs(wide.log_probabilities - close.log_probabilities)
    assert 0 < difference.max() < 0.05
    with pytest.raises(UserError, match="cache: int4 is not one of auto and int8"):
        tunesmith.load(model.name, cache="int4")
    config = config_of("bloom", len(model.tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cache: BloomForCausalLM keeps a state that cannot be paged"):
        tunesmith.load(tmp_path, cache="int8").generate("a")


def stored_adapter(base: Path, config: Any, directory: Path, spread: float = 0.3) -> Path:
    """An adapter of the base with random weights, in PEFT's files."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    if spread:
        randomize(model, spread)
    model.save_pretrained(directory)
    return directory


def next_log_probabilities(model: Any, tokenizer: Any, text: str) -> np.ndarray:
    """transformers' log p of each token after the first."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -ids.shape[1] : -1]
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()


@pytest.mark.parametrize("family", ["bloom", "granitemoehybrid"])
def test_a_family_that_cannot_be_paged_scores_texts_too(family: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    tokenizer = byte_tokenizer()
    config = config_of(family, len(tokenizer), eos_token_id=None, pad_token_id=None, bos_token_id=None)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = tunesmith.load(tmp_path, precision="fp32")
    assert not model.generator.is_paged
    text = "A list is a sequence."
    expected = next_log_probabilities(theirs, tokenizer, text)
    np.testing.assert_allclose(model.score(text)[0].log_probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(model.score(["x", text])[1].log_probabilities, expected, atol=1e-5)


def test_an_own_adapter_without_effect_writes_as_its_base(tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    own = tunesmith.load(stored_adapter(tiny_model, config, tmp_path / "own", spread=0), precision="fp32")
    base = tunesmith.load(tiny_model, precision="fp32")
    assert own.generate("Hi", max_new_tokens=5)[0].tokens == base.generate("Hi", max_new_tokens=5)[0].tokens
    with pytest.raises(UserError, match="has no effect"):
        base.load_adapter("other", tmp_path / "own")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LoraConfig(target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"), id="embeddings"),
        pytest.param(LoraConfig(target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"), id="dora"),
        pytest.param(VeraConfig(target_modules=["q_proj"], r=4, task_type="CAUSAL_LM"), id="vera"),
    ],
)
def test_an_adapter_within_the_model_is_used_and_cannot_be_left_out(
    config: Any, tiny_model: Path, tmp_path: Path
) -> None:
    directory = stored_adapter(tiny_model, config, tmp_path / "own")
    model = tunesmith.load(directory, precision="fp32")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), directory)
    text = "A list is a sequence."
    expected = next_log_probabilities(theirs.eval(), model.tokenizer, text)
    np.testing.assert_allclose(model.score(text)[0].log_probabilities, expected, atol=1e-4)
    plain = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    for refused in (
        lambda: model.generate("Hi", adapter="base", max_new_tokens=1),
        lambda: model.load_adapter("other", stored_adapter(tiny_model, plain, tmp_path / "other")),
    ):
        with pytest.raises(UserError, match=r"cannot be left out or exchanged\. Load the model's base"):
            refused()


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "ia3": {"kind": "ia3"},
    "prompt": {"kind": "prompt", "tokens": 3},
    "ptuning": {"kind": "ptuning", "tokens": 3},
    "prefix": {"kind": "prefix", "tokens": 3},
    "projected prefix": {"kind": "prefix", "tokens": 3, "projection": True},
}
"""Whose adapters share one base."""


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each method with random weights, as training stores it."""
    directory = tmp_path_factory.mktemp("tuned")
    for name, values in METHODS.items():
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        own = randomize(method_of(**values).apply(base, seed=0), 0.5)
        own.eval().save_pretrained(directory / name)
    return {name: directory / name for name in METHODS}


@pytest.mark.parametrize("name", few(METHODS, ["lora", "ia3", "prefix"]))
def test_a_trained_adapter_is_beside_its_base_and_takes_others_there(
    name: str, tuned: dict[str, Path], tiny_model: Path
) -> None:
    model, base = tunesmith.load(tuned[name], precision="fp32"), tunesmith.load(tiny_model, precision="fp32")
    assert model.generator.has_base
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), tuned[name]
    )
    text = "A list is a sequence."
    expected = next_log_probabilities(theirs.eval(), model.tokenizer, text)
    np.testing.assert_allclose(model.score(text)[0].log_probabilities, expected, atol=1e-4)
    (score,), (plain,) = model.score(text, adapter="base"), base.score(text)
    assert np.array_equal(score.log_probabilities, plain.log_probabilities)
    others = [other for other in tuned if other != name]
    for other in others:
        base.load_adapter(other, tuned[other])
        model.load_adapter(other, tuned[other])
        (score,), (alone,) = model.score(text, adapter=other), base.score(text, adapter=other)
        assert np.array_equal(score.log_probabilities, alone.log_probabilities)


@pytest.mark.parametrize(
    ("weights", "name"),
    few(product(["auto", "nf4"], METHODS), [("auto", "lora"), ("auto", "ptuning"), ("nf4", "lora"), ("nf4", "prefix")]),
)
def test_a_model_in_memory_writes_as_one_that_is_loaded_to_write(
    weights: str, name: str, tuned: dict[str, Path]
) -> None:
    found = ModelReference.find(str(tuned[name]))
    reference = replace(found, base=found.base.model_copy(update={"weights": weights}))
    arguments = (reference, torch.float32, torch.device("cpu"))
    loaded = Generator.of(*arguments, loaded=reference.model(*arguments[1:]))
    assert loaded.is_paged
    assert loaded.has_base
    chats, sampling = [[{"role": "user", "content": "Hi"}]], Sampling(max_new_tokens=6)
    assert loaded.answers(chats, sampling) == Generator.of(*arguments).answers(chats, sampling)
    assert loaded.answers(chats, sampling) != loaded.answers(chats, sampling, adapter="base")


@pytest.mark.long
def test_the_demo_compares_with_the_base_also_if_the_adapter_is_within_the_model(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = LoraConfig(target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    models = SideBySide.of(stored_adapter(tiny_model, config, tmp_path / "own"))
    base = tunesmith.load(tiny_model).generate("Hi", max_new_tokens=6)[0].text.strip()
    assert models.base_answers(["Hi"], 6) == [base]
    before, after = models.general_losses()
    assert before.loss != after.loss


def test_the_demo_compares_with_the_base_also_if_the_run_has_no_adapter(tiny_model: Path, tmp_path: Path) -> None:
    trained = AutoModelForCausalLM.from_pretrained(tiny_model)
    randomize(trained)
    trained.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    recipe = f"base: {tiny_model}\ndata: {{train: rows.jsonl}}\nmethod: {{kind: full}}\n"
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    models = SideBySide.of(tmp_path)
    base = tunesmith.load(tiny_model).generate("Hi", max_new_tokens=6)[0].text.strip()
    assert models.base_answers(["Hi"], 6) == [base]
    assert models.tuned_answers(["Hi"], 6) != [base]
