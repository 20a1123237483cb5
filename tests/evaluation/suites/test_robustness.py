"""The ways in which the suite `robustness` writes a prompt badly, and the metric by which it scores."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluation.suites.robustness import CHANGES, LONG, NEIGHBORS, filler, with_prompt, with_typos
from tunesmith.evaluation.suites.task_score import main_metric, scored
from tunesmith.metrics import METRICS
from tunesmith.subjects.subject import Answer

TEXT = "The quick brown fox, aged 12, jumps over the lazy dog at 3:45 p.m. " * 40


def changed(name: str, text: str) -> str:
    return CHANGES[name][1](text, random.Random(1))


@given(st.text(), st.integers(0, 100))
def test_typos_touch_letters_only(text: str, seed: int) -> None:
    typed = with_typos(text, random.Random(seed), share=1.0)
    assert Counter(each for each in typed if not each.isalpha()) == Counter(each for each in text if not each.isalpha())
    assert with_typos(text, random.Random(seed), share=0.0) == text
    assert with_typos(text, random.Random(seed)) == with_typos(text, random.Random(seed))


def test_five_percent_of_the_letters_are_mistyped_by_a_slip_of_a_finger() -> None:
    letters = sum(each.isalpha() for each in TEXT)
    typed = with_typos(TEXT, random.Random(0))
    assert abs(len(typed) - len(TEXT)) < 0.05 * letters
    slips = [with_typos(f"{letter} ", random.Random(seed), 1.0)[:-1] for letter in "aQ" for seed in range(40)]
    assert set(slips) == {"", "aa", "s", "QQ", "W"}  # the swap has no next letter, so it is a key beside
    wrong = [word not in ("ab", "cd") for word in with_typos("ab cd " * 1000, random.Random(0)).split()]
    assert sum(wrong) / 2000 == pytest.approx(1 - 0.95**2, abs=0.02)


def test_keys_beside_are_those_of_the_same_row() -> None:
    assert (NEIGHBORS["q"], NEIGHBORS["g"], NEIGHBORS["m"]) == ("w", "fh", "n")


def test_each_change_is_what_its_name_says() -> None:
    text = "Is Ann's bag\nred, (or 4)?"
    assert changed("lower_case", text) == "is ann's bag\nred, (or 4)?"
    assert changed("upper_case", text) == "IS ANN'S BAG\nRED, (OR 4)?"
    assert changed("no_punctuation", text) == "Is Anns bag\nred or 4"
    assert changed("white_space", text) == "Is  Ann's  bag\n\nred,  (or  4)?"
    assert text in changed("small_talk", text)
    assert changed("typos", TEXT) != TEXT
    assert len(filler().split()) == LONG


def test_only_the_last_turn_of_a_chat_is_changed() -> None:
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert with_prompt(chat, "V") == [{"role": "system", "content": "S"}, {"role": "user", "content": "V"}]
    assert chat[1]["content"] == "U"


@pytest.mark.parametrize(
    ("expected", "metric"),
    [
        (['{"a": 1}', "[1, 2]"], "fields"),
        (["positive", "very negative"], "exact_match"),
        (['{"a": 1}', "none"], "exact_match"),
        (["positive", "It is the third one."], "rouge_l"),
    ],
)
def test_the_task_is_scored_by_what_its_answers_are(expected: list[str], metric: str) -> None:
    assert main_metric(expected) is METRICS[metric]


def test_reasoning_is_not_scored() -> None:
    answers = [Answer("<think>no</think>yes"), Answer("<think>yes")]
    assert scored(METRICS["exact_match"], answers, ["yes", "yes"]).tolist() == [1, 0]
