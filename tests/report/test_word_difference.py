"""The page marks exactly the words in which two answers differ, and nothing of them becomes markup."""

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.report.word_difference import marked_difference


@pytest.mark.parametrize(
    ("expected", "answer", "marked"),
    [
        ("the red fox", "the red fox", ("the red fox", "the red fox")),
        ("the red fox", "the blue fox", ("the <del>red</del> fox", "the <ins>blue</ins> fox")),
        ("a fox", "a very red fox", ("a fox", "a <ins>very red</ins> fox")),
        ("a red, old fox", "a fox", ("a <del>red, old</del> fox", "a fox")),
        ("a fox", "", ("<del>a fox</del>", "")),
        ("yes", "no", ("<del>yes</del>", "<ins>no</ins>")),
        ('{"a":1}', '{"a":2}', ("{&#34;a&#34;:<del>1</del>}", "{&#34;a&#34;:<ins>2</ins>}")),
        ("a  fox\n", "a fox", ("a  fox\n", "a fox")),
        ("x", "x\n  y\n  z", ("x", "x\n  <ins>y</ins>\n  <ins>z</ins>")),
        ("<b>", "<i>", ("&lt;<del>b</del>&gt;", "&lt;<ins>i</ins>&gt;")),
    ],
)
def test_words_that_only_one_text_has_are_marked(expected: str, answer: str, marked: tuple[str, str]) -> None:
    assert marked_difference(expected, answer) == marked


def test_repeated_words_of_a_long_text_are_still_compared() -> None:
    text = "a b " * 150
    assert marked_difference(text, "c " + text) == (text, "<ins>c</ins> " + text)


def test_texts_that_would_take_seconds_are_not_compared() -> None:
    text = "a <b " * 900
    assert marked_difference(text, text + "c") == (text.replace("<", "&lt;"), text.replace("<", "&lt;") + "c")


@given(expected=st.text("ab <&\n.", max_size=12), answer=st.text("ab <&\n.", max_size=12))
def test_without_the_marks_both_texts_are_unchanged(expected: str, answer: str) -> None:
    for text, marked in zip((expected, answer), marked_difference(expected, answer), strict=True):
        assert unescape(re.sub("</?(del|ins)>", "", marked)) == (text if text.strip() else "")
