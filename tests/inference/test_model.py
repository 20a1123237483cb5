"""`tunesmith.load`: what every command takes, as one object that generates, chats, classifies, embeds and scores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunesmith
from tunesmith.errors import UserError
from tunesmith.inference.generate import Sampling, answers
from tunesmith.models.attention import use_cached_attention
from tunesmith.models.prompts import plain_model


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> tunesmith.Model:
    return tunesmith.load(str(tiny_model), precision="fp32")


def test_generate_answers_as_the_engine_does(model: tunesmith.Model) -> None:
    questions = ["Hi", "What is 3 + 3?"]
    texts = model.generate(questions, system="Be short.", max_new_tokens=5, temperature=0.8, top_p=0.9, seed=4)
    chats = [({"role": "system", "content": "Be short."}, {"role": "user", "content": each}) for each in questions]
    use_cached_attention(plain_model(model.model))
    assert texts == answers(model.model, model.tokenizer, chats, Sampling(5, 0.8, 0.9, seed=4))
    assert model.generate("Hi", max_new_tokens=3) == tunesmith.generate(model.name, "Hi", max_new_tokens=3)
    pieces: list[str] = []
    turns = [{"role": "user", "content": "Hi"}]
    assert "".join(pieces) == ""
    assert model.chat(turns, write=pieces.append, max_new_tokens=5, temperature=0) == "".join(pieces).strip()
    assert [model.chat(turns, max_new_tokens=5, temperature=0)] == model.generate("Hi", max_new_tokens=5)
    assert model.generate("ab", raw=True, max_new_tokens=3) != model.generate("ab", max_new_tokens=3)


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
    scores = model.score([f"It is {2 * n}, of course." for n in numbers], [f"What is {n} + {n}?" for n in numbers])
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
    assert "model" not in vars(fresh)
    with pytest.raises(UserError, match="2 prompts for 1 texts"):
        fresh.score(["a"], ["b", "c"])
    with pytest.raises(UserError, match=r"holds 512\. Shorten it"):
        model.score(["a" * 600])
