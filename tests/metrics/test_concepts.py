"""Concept coverage: which of the given words an answer uses, in any form."""

from pathlib import Path

import numpy as np
import pytest

from tunesmith.errors import UserError
from tunesmith.metrics import metric_named
from tunesmith.metrics.concepts import concepts_of, coverage
from tunesmith.metrics.metric import Case, measured

DATA = Path(__file__).parents[4] / "shared" / "data" / "commongen"


@pytest.mark.parametrize(
    ("answer", "concepts", "share"),
    [
        ("The player stood in the field looking at the batter.", "field stand look", 1),
        ("She threw the ball and caught it; the children ran.", "throw ball catch child run", 1),
        ("Men were driving cars.", "man drive car", 1),
        ("A dancer dances.", "dance dancer", 1),
        ("The dog sat.", "dog cat sit bird", 1 / 2),
        ("A catalog of standards.", "cat stand", 0),
        ("", "dog", 0),
        ("Ice cream!", "ice cream", 1),
    ],
)
def test_inflected_forms_count_and_other_words_do_not(answer: str, concepts: str, share: float) -> None:
    assert coverage(answer, concepts.split()) == pytest.approx(share)


def test_a_concept_of_two_words_needs_both() -> None:
    assert coverage("a cup of hot tea", ["hot tea", "hot dog"]) == 1 / 2


@pytest.mark.parametrize(
    ("prompt", "concepts"),
    [
        ("Write a sentence with: dog, run, park.", ["dog", "run", "park"]),
        ("Note: be brief.\nConcepts: dog run park", ["dog", "run", "park"]),
        ("Words: dog#ice cream#park", ["dog", "ice cream", "park"]),
        ("Use these words: dog, run, and park", ["dog", "run", "park"]),
        ("Write a sentence.", []),
    ],
)
def test_concepts_are_read_after_the_last_colon_of_the_question(prompt: str, concepts: list[str]) -> None:
    assert concepts_of(prompt) == concepts


def test_coverage_reads_concepts_from_the_question_where_the_setting_says() -> None:
    cases = [
        Case("a", "Use the words dog and run in one sentence", "Dogs ran.", ""),
        Case("b", "Use the words sun and sea in", "The sun rose.", ""),
    ]
    metric = metric_named(r"coverage:words (.+?) in\b")
    found = measured({"coverage": metric}, cases)["coverage"]
    assert found.values is not None
    assert found.values.tolist() == pytest.approx([1.0, 1 / 2])
    with pytest.raises(UserError, match=r"^a: the question lists no concepts .*coverage:PATTERN"):
        measured({"coverage": metric_named("coverage")}, cases)
    with pytest.raises(UserError, match="has no group"):
        metric_named("coverage:words .+")
    with pytest.raises(UserError, match="not a regular expression"):
        metric_named("coverage:(")


@pytest.mark.skipif(not DATA.exists(), reason="the data set is not here")
def test_sentences_that_people_wrote_with_all_concepts_are_nearly_covered() -> None:
    """CommonGen's own references use every concept, so that what is missing here is what the measure overlooks."""
    rows = slice(0, 1000)
    lists, sentences = (
        (DATA / f"dev.{kind}.txt").read_text(encoding="utf-8").splitlines()[rows] for kind in ("concepts", "sentences")
    )
    found = [coverage(sentence, concepts.split()) for sentence, concepts in zip(sentences, lists, strict=True)]
    assert np.mean(found) > 0.98
