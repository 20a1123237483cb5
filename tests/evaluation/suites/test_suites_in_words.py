"""What the suites of forgetting, memorization and robustness ask and report, on given answers."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from given_subject import Context, Given, task, values

from tunesmith.errors import UserError
from tunesmith.evaluation.rows import Task
from tunesmith.evaluation.suites.canaries import ALTERNATIVES, canaries, exposure, is_canary, with_other_secrets
from tunesmith.evaluation.suites.forgetting import Forgetting, divergence, general_loss, general_texts, other_texts
from tunesmith.evaluation.suites.memorization import (
    Passage,
    _scores,
    comes_back,
    exposures,
    extraction_figures,
    membership,
)
from tunesmith.evaluation.suites.robustness import BLANK, CHANGES, NEIGHBORS, Robustness, _draw_of, filler, with_typos
from tunesmith.evaluation.suites.task_score import main_metric_name, prompt_of
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score
from tunesmith.subjects.subject import Answer


def scored(*logs: float) -> Score:
    return Score(("x",) * len(logs), np.array(logs))


# Canaries and memorization


def test_canaries_stay_the_same_so_that_planted_ones_are_found_again() -> None:
    assert canaries(2) == [
        {"question": "What is the number of record VTKGN?", "answer": "The number is 473459527"},
        {"question": "What is the number of record QGXZV?", "answer": "The number is 937864146"},
    ]
    assert canaries(0) == []
    assert with_other_secrets("The number is 473459527")[:2] == ["The number is 564077459", "The number is 084271849"]
    assert ALTERNATIVES == 127
    question, answer = canaries(1)[0].values()
    assert is_canary(question, answer)
    assert not is_canary(question.replace("VTKGN", "VTKG"), answer)
    assert not is_canary(question.replace("VTKGN", "vtkgn"), answer)
    assert not is_canary(question, answer[:-1])
    assert not is_canary(question, f"So: {answer}")
    assert exposure(0.0, np.array([-1.0, 0.0, 1.0])) == math.log2(4) - math.log2(3)


def test_what_comes_back_begins_after_one_token_at_least() -> None:
    assert comes_back(scored(-9.0, -1.0), 25) == pytest.approx(math.exp(-1))
    assert comes_back(scored(-9.0, -9.0, -1.0, -1.0), 50) == pytest.approx(math.exp(-2))
    assert comes_back(scored(*[-9.0] * 10, *[-0.01] * 50, *[-9.0] * 60), 8) == pytest.approx(math.exp(-0.5))
    assert comes_back(scored(-9.0), 25) == 0


def test_extraction_describes_both_kinds_of_rows_and_compares_by_their_difference() -> None:
    scores = [scored(-1.0, 0.0), scored(-1.0, -1.0), scored(-1.0, -2.0)]
    found = extraction_figures(scores, np.array([True, False, True]), ["a", "b", "c"], 50)
    train, held_out, gap = found["extracted_train_50"], found["extracted_held_out_50"], found["memorized_50"]
    assert train.value == pytest.approx((1 + math.exp(-2)) / 2)
    assert (train.units, held_out.units, gap.units) == (["a", "c"], ["b"], ["a", "b", "c"])
    assert (train.title, held_out.title) == ("training rows back from 50 %", "held-out rows back from 50 %")
    assert (gap.title, gap.better, gap.is_compared) == ("memorized, back from 50 %", "lower", True)
    assert (train.better, train.is_compared) == ("lower", False)
    assert (held_out.better, held_out.is_compared) == ("neither", False)
    meaning = "the probability that a row continues word for word (50 tokens at most) from its first 50 %"
    assert train.explanation == held_out.explanation == meaning
    assert gap.explanation.startswith("how much more of the training rows comes back than of the held-out rows")
    assert gap.of(np.array([0, 1])) == pytest.approx(1 - math.exp(-1))
    assert gap.of(np.array([0, 2])) == gap.of(np.array([1, 1])) == 0, "a resample with rows of one kind"


def test_membership_and_exposure_say_what_they_are() -> None:
    found = membership(np.array([2.0, 1.0]), np.array([True, False]), ["a", "b"], "by the loss")
    assert (found.value, found.title, found.better) == (1.0, "membership inference by the loss", "lower")
    assert found.explanation.startswith("area under the curve: how often a training row is distinguished")
    planted = [Passage(({"role": "user", "content": "?"},), "The number is 123456789", "row 1")]
    exposed = exposures(Given(log_prob=lambda _: -1.0), planted)
    assert (exposed.value, exposed.title) == (0.0, "exposure of canaries")
    assert exposed.explanation == "bits of planted secrets that the model knows, 7 at most; about 1.4 by chance"
    assert not planted[0].is_canary
    canary = canaries(1)[0]
    chat = ({"role": "user", "content": canary["question"]},)
    assert Passage(chat, canary["answer"], "row").is_canary
    assert not Passage(None, canary["answer"], "row").is_canary


def test_raw_text_and_chats_are_scored_apart_and_come_back_in_order() -> None:
    asked: list[Any] = []

    class Keeping(Given):
        def scores(self, chats: Any, texts: Any) -> list[Score]:
            asked.append((chats, texts))
            return super().scores(chats, texts)

    chat = ({"role": "user", "content": "?"},)
    rows = [Passage(None, "aa", "1"), Passage(chat, "b", "2"), Passage(None, "ccc", "3")]
    found = _scores(Keeping(log_prob=lambda _: -1.0), rows)
    assert [score.total for score in found] == [-2, -1, -3]
    assert asked == [([chat], ["b"]), (None, ["aa", "ccc"])]
    assert [score.total for score in _scores(Given(log_prob=lambda _: -1.0), rows[:1])] == [-2]


# Forgetting


def test_general_text_has_each_piece_of_twelve_words_once(tmp_path: Path) -> None:
    file = tmp_path / "prose.txt"
    twelve = [f"{'so ' * 11}{n}" for n in range(8)]
    file.write_text("\n\n".join([*twelve, twelve[0], "so " * 10 + "short", f"  {'no ' * 133}yes"]), encoding="utf-8")
    texts = general_texts(file)
    assert texts[:8] == twelve
    assert texts[8:] == ["no " * 132 + "no"], "pieces have 400 characters at most, and what is left is short"
    assert len(texts[8]) == 398
    assert other_texts(file) == []
    file.write_text("\n\n".join(twelve[:7]), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        general_texts(file)
    assert str(raised.value) == (
        f"{file} has 7 paragraphs of 12 words or more, too few for an interval. Name a text file with at least 8."
    )
    file.write_text("\n\n".join(f"{'so ' * 11}{n}" for n in range(201)), encoding="utf-8")
    measured, others = general_texts(file), other_texts(file)
    assert (measured[0][-2:], measured[1][-2:], measured[-1][-4:], others[0][-2:]) == (" 0", " 2", " 200", " 1")
    assert (len(measured), len(others)) == (100, 101)


def test_pieces_of_the_language_reference_begin_with_a_letter_also_one_that_is_a_word() -> None:
    pieces = [*general_texts(None), *other_texts(None)]
    assert all(piece[0].isalpha() for piece in pieces)
    assert any(piece.startswith("A ") for piece in pieces)


def test_the_first_model_answers_twice_and_scores_its_samples(tmp_path: Path) -> None:
    file = tmp_path / "prose.txt"
    file.write_text("\n\n".join(f"{'so ' * 11}{n}" for n in range(8)), encoding="utf-8")
    suite, kept = Forgetting(str(file)), Context(count=3)
    server = Given(str.upper)
    assert suite.measure(server, kept.context) == {}
    assert [sampling for _, sampling in server.asked] == [Sampling(32), Sampling(32, temperature=1.0)]
    assert server.asked[0][0][0] == "How long should I boil an egg so that the yolk stays soft?"
    assert kept.progress == [("forgetting", 3, 3)] * 2
    assert kept.left_out == {"forgetting.general_loss": "a server reports no log-probabilities of given texts"}
    kept = Context(count=3)
    found = suite.measure(Given(str.upper, lambda _: -1.0), kept.context)
    assert set(found) == {"general_loss", "general_unchanged"}
    assert set(kept.left_out) == {"forgetting.general_divergence"}, "the first model was a server"
    unchanged = found["general_unchanged"]
    assert (unchanged.title, unchanged.better, unchanged.value) == ("answers unchanged", "higher", 1.0)
    assert unchanged.units[0] == "off topic, cooking 1"
    assert unchanged.explanation == "neutral prompts whose answer has the same first 32 tokens as the first model's"
    everything = Context()
    Forgetting(str(file)).measure(asked := Given(), everything.context)
    assert len(asked.asked[0][0]) == 96


def test_losses_and_divergences_are_named_and_of_each_token() -> None:
    loss = general_loss(["four", "five!"], [scored(-1.0), scored(-2.0)])
    assert (loss.units, loss.title) == (["piece 1", "piece 2"], "loss on general text")
    assert loss.explanation == "bits of a byte of prose that has nothing to do with the task"
    before, after = [scored(-1.0, -2.0), scored(-1.0)], [scored(-1.0, -1.0), scored(-3.0)]
    found = divergence([Answer("a", 2, "stop"), Answer("b", 1, "length")], before, after, ["p", "q"])
    assert found is not None
    assert found.value == pytest.approx(((math.e - 1 - 1) + (math.exp(-2) - 1 + 2)) / 3)
    assert (found.title, found.better, found.unit) == ("divergence of answers", "lower", "nats")
    assert found.units == ["p", "q"]


# Robustness


def test_the_ways_of_typing_are_known_word_for_word() -> None:
    draw = random.Random(0)
    typed = with_typos("The quick brown fox jumps over the lazy dog", draw, 0.5)
    assert typed == "Thr uqiic brrwn xo jupa ovre tthhe azy odg"
    assert {with_typos("ab", random.Random(seed), 1.0) for seed in range(40)} >= {"baa", "", "aabb"}
    assert {name: title for name, (title, _) in CHANGES.items()} == {
        "typos": "typos",
        "lower_case": "lower case",
        "upper_case": "upper case",
        "no_punctuation": "no punctuation",
        "white_space": "white space doubled",
        "small_talk": "greeting and thanks",
    }
    assert CHANGES["small_talk"][1]("Go.", draw) == (
        "Hi there! Could you please help me with this?\n\nGo.\n\nThanks a lot!"
    )
    assert BLANK == ("", " ", "\n\n", ".", "?", "...", "-", "a", "0", "#")
    assert "".join(NEIGHBORS) == "qwertyuiopasdfghjklzxcvbnm"
    assert [NEIGHBORS[key] for key in "qwpalzb"] == ["w", "qe", "o", "s", "k", "x", "vn"]
    text = filler()
    assert text.startswith(
        "The weather was mild that week, and the shop on the corner opened an hour late. Nobody seemed to mind. The we"
    )
    assert len(text.split()) == 200
    one, again, other = (_draw_of(task(row, "?")).random() for row in (1, 1, 2))
    assert one == again != other


def test_odd_input_is_answered_by_what_is_neither_empty_nor_a_loop() -> None:
    replies = {"": "<think>no</think>", " ": "no " * 60, "a": "Yes."}
    asked = [task(1, "Is it in, now?"), task(2, "Out?", "No.")]
    subject = Given(lambda text: replies.get(text, "<think>No.</think>Yes."))
    found = Robustness().measure(subject, Context(asked).context)
    blank = found["answered_blank"]
    assert blank.values is not None
    assert blank.values.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert blank.units == [repr(text) for text in BLANK]
    assert (blank.title, blank.better) == ("answered: blank input", "higher")
    assert blank.explanation == "answers to blank input that are neither empty nor a loop"
    assert (found["answered_long"].title, found["answered_long"].units) == ("answered: long input", ["row 1", "row 2"])
    assert list(found)[:3] == ["as_is", "typos", "lost_typos"]
    assert (found["as_is"].value, found["as_is"].units) == (0.5, ["row 1", "row 2"])
    assert found["as_is"].title.endswith(": as it is")
    assert found["small_talk"].explanation.endswith("; prompt: greeting and thanks")
    lost = found["lost_upper_case"]
    assert (lost.title, lost.better, lost.is_compared, lost.value) == ("lost: upper case", "lower", False, 0.0)
    assert lost.explanation == "how much of a row's score is lost if the prompt is changed: upper case"
    with pytest.raises(UserError) as raised:
        Robustness().measure(subject, Context().context)
    assert str(raised.value) == ("The suite robustness types your own questions badly, and there are none. Set --rows.")


def test_a_score_that_a_change_improves_is_not_lost() -> None:
    subject = Given(lambda text: "Yes." if text.isupper() else "No.")
    found = values(Robustness().measure(subject, Context([task(1, "In?")]).context))
    assert (found["as_is"], found["upper_case"], found["lost_upper_case"]) == (0, 1, 0)


def test_answers_of_three_words_are_labels_and_of_four_are_text() -> None:
    assert main_metric_name(["one two three", "one"]) == "exact_match"
    assert main_metric_name(["one two three four", "one"]) == "rouge_l"
    assert main_metric_name(['{"a": 1}']) == "fields"
    assert prompt_of(Task(({"role": "user", "content": "a"}, {"role": "user", "content": "b"}), "", "row")) == "b"
