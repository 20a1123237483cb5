"""The quality score: bounded, and lower for each thing that makes a row worse."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.checks.quality import quality
from tunesmith.checks.record import Record
from tunesmith.data.example import Source

PROMPT = "How do bees make honey in winter?"
ANSWER = (
    "Bees make honey from nectar, which they collect from flowers in spring and summer. In winter they eat the honey "
    "that is stored in the hive, and keep each other warm in a dense cluster around the queen."
)


def score(prompt: str, answer: str) -> float:
    return quality(Record(Source("rows.jsonl", 1), prompt, answer)).score


@settings(deadline=None, max_examples=50)
@given(st.text(), st.text())
def test_the_score_and_its_features_are_between_0_and_1(prompt: str, answer: str) -> None:
    found = quality(Record(Source("rows.jsonl", 1), prompt, answer))
    for value in (found.score, found.length, found.variety, found.prose, found.relevance):
        assert 0 <= value <= 1


@pytest.mark.parametrize(
    "worse",
    [
        ANSWER[:20],
        ANSWER[:-20],
        "Bees make honey. " * 12,
        "#*%$ " * 40,
        ANSWER.replace("honey", "hÃ¶ney"),
        "As an AI language model, I cannot make honey. " + ANSWER,
        "The capital of France is Paris, and the capital of Italy is Rome, which is old and large.",
        "",
    ],
)
def test_each_fault_lowers_the_score(worse: str) -> None:
    assert score(PROMPT, worse) < score(PROMPT, ANSWER)


def test_the_score_is_the_mean_of_the_features_halved_for_each_fault() -> None:
    found = quality(Record(Source("rows.jsonl", 1), PROMPT, ANSWER[:-20]))
    mean = (found.length + found.variety + found.prose + found.relevance) / 4
    assert found.faults == ("cut",)
    assert found.score == pytest.approx(mean / 2)
