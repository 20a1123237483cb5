"""Near-duplicates between two sets of texts: all that brute force finds, and nothing else."""

import random

from tunesmith.data.near_duplicates import jaccard, near_duplicates, shingles

WORDS = [f"word{number}" for number in range(400)]


def edited(text: str, share: float, draw: random.Random) -> str:
    """The text with a share of its words replaced."""
    return " ".join(draw.choice(WORDS) if draw.random() < share else word for word in text.split())


def test_planted_near_duplicates_are_those_of_brute_force() -> None:
    draw = random.Random(0)
    others = [" ".join(draw.choices(WORDS, k=draw.randint(8, 60))) for _ in range(300)]
    texts = [edited(draw.choice(others), draw.choice([0.0, 0.02, 0.05, 0.3]), draw) for _ in range(300)]
    found = near_duplicates(texts, others)
    exact = {
        index
        for index, text in enumerate(texts)
        if max(jaccard(shingles(text), shingles(other)) for other in others) >= 0.8
    }
    assert {each.text for each in found} == exact
    assert 50 < len(exact) < 290
    assert all(each.similarity == jaccard(shingles(texts[each.text]), shingles(others[each.other])) for each in found)


def test_case_and_punctuation_do_not_matter_and_short_texts_must_be_equal() -> None:
    assert near_duplicates(["How do I reset it?"], ["how do I RESET it"])[0].similarity == 1.0
    assert near_duplicates(["Hello there"], ["Hello you"]) == []
    assert near_duplicates([], ["a"]) == near_duplicates(["a"], []) == []
