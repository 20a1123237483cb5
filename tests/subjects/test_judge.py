"""A judge: what it is asked, how its replies are read and counted, how far it agrees with itself and people."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tunesmith.errors import UserError
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score
from tunesmith.metrics.metric import Case
from tunesmith.statistics.intervals import estimate
from tunesmith.statistics.prediction_powered import prediction_powered
from tunesmith.subjects.judge import Judge
from tunesmith.subjects.subject import Answer, Chat
from tunesmith.subjects.verdicts import (
    SCORES,
    agreement_with_itself,
    agreement_with_people,
    corrected_by_people,
    score_figure,
    wins_figure,
)


class Scripted:
    """A model whose replies are a function of what it is asked and of the temperature."""

    name, identity, scores_texts = "scripted", None, False

    def __init__(self, reply: Callable[[str, float], str]) -> None:
        self.reply, self.asked = reply, list[tuple[Chat, Sampling]]()

    def answers(
        self, chats: Sequence[Chat], sampling: Sampling, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        self.asked += [(chat, sampling) for chat in chats]
        return [Answer(self.reply(str(chat[-1]["content"]), sampling.temperature)) for chat in chats]

    def scores(self, prompts: Sequence[str | Chat] | None, texts: Sequence[str]) -> list[Score]:
        raise NotImplementedError


CASES = [Case(f"row {n}", f"Question {n}?", f"answer {n}", "good") for n in range(6)]


def by_length(text: str, temperature: float) -> str:
    return json.dumps({"reason": "it is {clear}", "score": 1 + int(text.rpartition("answer ")[2]) % 5})


def test_scores_are_asked_for_with_the_rubric_and_a_schema_and_read_from_json() -> None:
    model = Scripted(by_length)
    found = Judge(model, "Answers are short.").scores(CASES)
    assert found.values.tolist() == [1, 2, 3, 4, 5, 1]
    (system, user), sampling = model.asked[0]
    assert "Answers are short." in str(system["content"])
    assert user["content"] == "[Question]\nQuestion 0?\n\n[A good answer]\ngood\n\n[Answer]\nanswer 0"
    schema = json.loads(sampling.schema or "")
    assert schema["properties"]["score"] == {"type": "integer", "minimum": 1, "maximum": 5}
    assert [sampling.temperature for _, sampling in model.asked] == [0.0] * 6 + [0.7] * 6
    assert estimate(score_figure(found, "scripted"))[0] == pytest.approx(16 / 6)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"reason": "x", "score": 4}', 4),
        ('Sure!\n```json\n{"reason": "x", "score": 4}\n```', 4),
        ('{"score": "4"}', 4),
        ('{"score": 2} no, {"score": 4}', 4),
        ('{"score": 6}', None),
        ('{"score": 4.5}', None),
        ('{"score": true}', None),
        ("[4]", None),
        ("I would give 4.", None),
        ("", None),
    ],
)
def test_replies_that_are_not_as_asked_are_failures_and_no_scores(reply: str, score: int | None) -> None:
    found = Judge(Scripted(lambda *_: reply), "x").scores(CASES[:1])
    assert (found.values[0] == score) if score else np.isnan(found.values[0])
    assert found.failures == (0 if score else 2)


def test_failures_are_counted_in_the_explanation_and_left_out_of_the_mean() -> None:
    model = Scripted(lambda text, _: "?" if "answer 3" in text else '{"score": 5}')
    figure = score_figure(Judge(model, "x").scores(CASES), "scripted")
    assert len(figure.units) == 5
    assert "2 of 12 replies could not be read" in figure.explanation
    assert estimate(figure)[0] == 5


def test_a_judge_that_changes_its_mind_does_not_agree_with_itself() -> None:
    model = Scripted(lambda text, temperature: json.dumps({"score": 3 if temperature and "answer 1" in text else 2}))
    figure, chance = agreement_with_itself(Judge(model, "x").scores(CASES))
    assert (estimate(figure)[0], chance) == (pytest.approx(5 / 6), pytest.approx(5 / 6))


OTHERS = [Case(case.source, case.prompt, f"{case.answer}, at length", case.expected) for case in CASES]


def test_a_winner_wins_in_both_orders() -> None:
    def longer(text: str, _: float) -> str:
        a, b = text.split("[Answer A]\n")[1].split("\n\n[Answer B]\n")
        return json.dumps({"better": "A" if len(a) > len(b) else "B"})

    found = Judge(Scripted(longer), "x").pairs(CASES, OTHERS)
    assert found.values.tolist() == [1] * 6
    assert Judge(Scripted(longer), "x").pairs(OTHERS, CASES).values.tolist() == [0] * 6
    assert estimate(wins_figure(found, "scripted"))[0] == 1
    assert estimate(agreement_with_itself(found)[0])[0] == 1


@pytest.mark.parametrize("always", ["A", "B"])
def test_a_judge_that_always_prefers_one_place_decides_nothing(always: str) -> None:
    found = Judge(Scripted(lambda *_: json.dumps({"better": always})), "x").pairs(CASES, OTHERS)
    assert found.values.tolist() == [0.5] * 6
    figure, chance = agreement_with_itself(found)
    assert (estimate(wins_figure(found, "scripted"))[0], estimate(figure)[0], chance) == (0.5, 0, 0)


def test_a_pair_with_one_unreadable_reply_has_no_winner() -> None:
    model = Scripted(lambda text, _: "?" if text.endswith("answer 2") else '{"better": "tie"}')
    found = Judge(model, "x").pairs(CASES, OTHERS)
    assert np.isnan(found.values).tolist() == [False, False, True, False, False, False]
    assert found.failures == 1


def test_agreement_with_people_is_their_share_and_kappa_of_scikit_learn() -> None:
    found = Judge(Scripted(by_length), "x").scores(CASES)
    labels = np.array([1, 2, 4, 4, 3, np.nan])
    figures = agreement_with_people(found, labels)
    assert estimate(figures["agreement"])[0] == pytest.approx(3 / 5)
    theirs = cohen_kappa_score([1, 2, 3, 4, 5], [1, 2, 4, 4, 3], weights="quadratic")
    assert figures["kappa"].of(np.arange(5)) == pytest.approx(theirs)
    assert figures["kappa"].units == [f"row {n}" for n in range(5)]
    with pytest.raises(ValueError, match="no case has both"):
        agreement_with_people(found, np.full(6, np.nan))


def test_scores_are_corrected_by_the_labels_of_some_cases() -> None:
    """A judge that is always one point too generous."""
    draw = np.random.default_rng(0)
    truth = draw.integers(1, 5, 300)
    cases = [Case(str(row), "", f"answer {value}", "") for row, value in enumerate(truth.tolist())]
    model = Scripted(lambda text, _: json.dumps({"score": 1 + int(text.rpartition("answer ")[2])}))
    found = Judge(model, "x").scores(cases)
    labels = np.full(300, np.nan)
    labels[:40] = truth[:40]
    value, (low, high) = corrected_by_people(found, labels, SCORES)
    assert low < truth.mean() < high < found.values.mean()
    assert (value, (low, high)) == prediction_powered(found.values[:40], labels[:40], found.values[40:])


def test_a_rubric_is_a_text_file_that_is_not_empty(tmp_path: Path) -> None:
    file = tmp_path / "rubric.md"
    file.write_text("Polite.\n")
    model = Scripted(by_length)
    Judge.by_file(model, file).scores(CASES[:1])
    assert "Polite." in str(model.asked[0][0][0]["content"])
    file.write_text(" \n")
    for path, message in ((file, "is empty. Write what makes an answer good"), (tmp_path / "no.md", "cannot be read")):
        with pytest.raises(UserError, match=message):
            Judge.by_file(model, path)
