"""Instruction-following difficulty: the losses of the same tokens with and without the prompt, and what is marked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curated import sentence, write

from tunesmith.checks.difficulty import AnswerLosses, difficulties
from tunesmith.checks.driver import check_data
from tunesmith.checks.unrelated_answers import _about, threshold
from tunesmith.data.example import Completion, Example, Source
from tunesmith.errors import UserError
from tunesmith.inference.model import load

SOURCE = Source("rows.jsonl", 1)


def turns(question: str, answer: str) -> tuple[dict[str, Any], ...]:
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}


def chat(question: str, answer: str) -> Example:
    return Example(SOURCE, messages=turns(question, answer))


@pytest.fixture(scope="module")
def losses(tiny_model: Path) -> AnswerLosses:
    return AnswerLosses(str(tiny_model))


def test_losses_are_those_of_the_generation_engine_on_the_same_tokens(tiny_model: Path, losses: AnswerLosses) -> None:
    rows = [(f"What about {sentence(n, 5)}?", f"{sentence(n + 50, 4)}.") for n in range(3)]
    found = losses.answers([chat(*row) for row in rows])
    answers = [answer for answer in found if answer is not None]
    engine = load(str(tiny_model)).generator
    scored = load(str(tiny_model)).score([question for question, _ in rows], [answer for _, answer in rows])
    ids = [answer.ids for answer in answers]
    for after, alone, answer, score in zip(
        losses.after([each.prompt for each in answers], ids), losses.alone(ids), answers, scored, strict=True
    ):
        count = len(answer.ids)
        assert len(score.tokens) > count  # with the token that ends the turn
        assert after == pytest.approx(-score.log_probabilities[:count].mean(), rel=1e-4)
        start = engine.renderer.bos_of_document or [engine.renderer.end_of_document]
        assert alone == pytest.approx(-np.mean(engine.scores([(start, answer.ids.tolist())])[0]), rel=1e-4)
    ratios = difficulties(losses, [chat(*row) for row in rows])
    assert ratios == pytest.approx(losses.after([each.prompt for each in answers], ids) / losses.alone(ids))


def test_only_chats_with_an_answer_that_fits_are_read(losses: AnswerLosses) -> None:
    best = Completion(({"role": "assistant", "content": "yes"},), 1.0)
    worse = Completion(({"role": "assistant", "content": "no"},), 0.0)
    compared = Example(SOURCE, messages=turns("Is it?", "x")[:1], completions=(worse, best))
    one, other = losses.answers([compared, chat("Is it?", "yes")])
    assert one is not None
    assert other is not None
    assert (one.ids.tolist(), one.prompt.tolist()) == (other.ids.tolist(), other.prompt.tolist())
    raw, prompt = Example(SOURCE, text="only text"), Example(SOURCE, messages=turns("Is it?", "x")[:1])
    assert losses.answers([raw, prompt, chat("Is it?", "word " * 9999)]) == [None, None, None]


def test_what_is_known_needs_no_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (answer,) = AnswerLosses(str(tiny_model)).answers([chat("Is it cached?", "It is.")])
    assert answer is not None
    known = AnswerLosses(str(tiny_model)).alone([answer.ids])
    again = AnswerLosses(str(tiny_model))
    monkeypatch.setattr(type(again), "_model", property(lambda self: pytest.fail("the model was loaded")))
    assert again.alone([answer.ids]) == known


def test_rows_are_marked_from_the_median_of_other_prompts_or_from_one() -> None:
    controls = np.linspace(0.8, 1.0, 21)
    assert threshold(controls) == pytest.approx(0.9)
    assert threshold(controls + 0.5) == 1
    assert threshold(controls[:19]) == 1


def test_the_base_rate_is_said_and_a_model_that_cannot_tell_says_so() -> None:
    values, controls = np.append(np.full(49, 0.5), [0.95, np.nan]), np.full(20, 0.9)
    said = _about(values, controls, 0.9, 1)
    assert "is 0.50 times that without it (median), and 0.90 times after another row's prompt (20 tried)" in said
    assert "1 rows have no answer" in said
    assert "Marked from 0.90 on: 100% of answers to other prompts, and 2.0% of these rows." in said
    assert "also 40% of these. No row is marked; name a larger --model." in _about(values, controls, 0.9, 20)


def test_marked_rows_are_those_above_the_threshold_the_worst_known(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"question": f"What about {sentence(n, 5)}?", "answer": f"{sentence(n + 50, 4)}."} for n in range(12)]
    path = write(tmp_path / "rows.jsonl", rows)
    events: list[dict[str, Any]] = []
    found = check_data(path, only=["unrelated_answers"], model=str(tiny_model), subscribers=[events.append])
    result = found["unrelated_answers"]
    ratios = difficulties(AnswerLosses(str(tiny_model)), [chat(**row) for row in rows])
    expected = np.flatnonzero(ratios >= 1) if (ratios >= 1).mean() < 0.25 else []  # fewer than 20 controls: from 1 on
    assert [mark.source.row - 1 for mark in result.marks] == list(expected)
    assert f"{np.median(ratios):.2f} times" in result.about
    assert {"event": "progress", "what": "rows read by the model", "done": 12, "total": 12} in events
    again = check_data(path, only=["unrelated_answers"], model=str(tiny_model))
    assert again.cached
    assert again["unrelated_answers"].about == result.about


def test_a_check_without_its_model_and_a_model_that_writes_no_text_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "Why?", "answer": "So."}])
    for name, option in (("unrelated_answers", "--model"), ("toxicity", "--toxicity")):
        with pytest.raises(UserError, match=f"{name} needs a model: name it with {option} NAME"):
            check_data(path, only=[name])
    assert "unrelated_answers" not in json.dumps([each.name for each in check_data(path).results])
