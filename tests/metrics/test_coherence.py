"""Answers that loop, repeat themselves, are empty, cut, in another language or of another length."""

import pytest

from tunesmith.metrics import NAMED
from tunesmith.metrics.coherence import is_empty, language, loops, repetition, same_language, script
from tunesmith.metrics.metric import Case, measured
from tunesmith.statistics.intervals import estimate


@pytest.mark.parametrize(
    ("answer", "looping"),
    [
        ("The answer is yes. " * 6, 1),
        ("It starts well and then it goes on and on and on and on and on and on and on", 1),
        ("first, " + "aaa bbb ccc ddd eee " * 3 + "aaa bbb", 1),
        ("!" * 40, 1),
        ("no, no, no", 0),
        ("I said no, no, no, and that was the end of it.", 0),
        ("The answer is yes. The answer is yes.", 0),
        ("The answer is yes. " * 6 + "And that is all that I know about this.", 0),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13", 0),
        ("", 0),
    ],
)
def test_an_answer_loops_if_its_end_repeats_three_times(answer: str, looping: int) -> None:
    assert loops(answer) == looping


def test_repetition_is_the_share_of_4_grams_that_came_before() -> None:
    """Welleck et al. 2020: 1 − unique / all. Of a b c d a b c d there are five 4-grams, four of them distinct."""
    assert repetition("a b c d a b c d", "") == pytest.approx(1 - 4 / 5)
    assert repetition("a b c d e f g", "") == 0
    assert repetition("a b c", "") == 0
    assert repetition("x " * 20, "") == pytest.approx(1 - 1 / 17)


def test_an_answer_without_letters_or_digits_is_empty() -> None:
    assert [is_empty(answer, "x") for answer in ("", " \n", "…", "--- !", "a", "7", "も")] == [1, 1, 1, 1, 0, 0, 0]


ENGLISH = "The children walked slowly home through the snow after school."
FRENCH = "Les enfants sont rentrés lentement à la maison après l'école, sous la neige."
GERMAN = "Die Kinder gingen nach der Schule langsam durch den Schnee nach Hause."
RUSSIAN = "Дети медленно шли домой по снегу после школы."
JAPANESE = "子供たちは放課後、雪の中をゆっくり歩いて帰った。"
CHINESE = "孩子们放学后在雪中慢慢走回家。"


@pytest.mark.parametrize("text", [ENGLISH, FRENCH, GERMAN, RUSSIAN, JAPANESE, CHINESE])
def test_language_is_the_same_only_for_texts_of_one_language(text: str) -> None:
    for other in (ENGLISH, FRENCH, GERMAN, RUSSIAN, JAPANESE, CHINESE):
        assert same_language(text, other) == (text == other), (language(text), language(other))


def test_texts_too_short_to_tell_apart_count_as_the_same_language() -> None:
    assert same_language("Oui.", "Yes.") == 1
    assert same_language("Да.", "Yes.") == 0
    assert same_language("", "Yes.") == 0
    assert same_language("12", "Yes.") == 0
    assert [script(text) for text in ("été", "Дом", "12", "カナ")] == ["LATIN", "CYRILLIC", None, "HIRAGANA"]


def test_without_py3langid_only_scripts_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.metrics.coherence._detector", lambda: None)
    assert same_language(FRENCH, ENGLISH) == 1
    assert same_language(RUSSIAN, ENGLISH) == 0


def test_an_answer_is_finished_if_the_engine_says_so_or_it_ends_like_a_sentence() -> None:
    cases = [
        Case("1", "", "It was", "It was late.", "length"),
        Case("2", "", "It was", "It was late.", "stop"),
        Case("3", "", "It was", "It was late."),
        Case("4", "", "It was late!", "It was late."),
        Case("5", "", "Paris", "London"),
        Case("6", "", "", "London"),
    ]
    found = measured({"finished": NAMED["finished"]}, cases)["finished"]
    assert found.values is not None
    assert found.values.tolist() == [0, 1, 0, 1, 1, 0]


def test_length_is_the_words_of_all_answers_for_each_expected_word() -> None:
    cases = [Case("1", "", "one two three", "one"), Case("2", "", "one", "one two three")]
    found = measured({"length_ratio": NAMED["length_ratio"]}, cases)["length_ratio"]
    assert estimate(found)[0] == 1
    assert (found.better, found.unit) == ("neither", "ratio")
    assert estimate(measured({"length_ratio": NAMED["length_ratio"]}, cases[:1])["length_ratio"])[0] == 3
