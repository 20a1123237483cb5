"""Near-duplicates: all that brute force finds, and nothing else."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.checks import native, shingles
from tunesmith.checks.near_duplicates import near_duplicates
from tunesmith.checks.near_runs import EVERY, Pairs, Sets, jaccard, representatives, similar_rows
from tunesmith.checks.shingles import by_definition, shingled
from tunesmith.checks.sketch import normalized

WORDS = [f"word{number}" for number in range(400)]


def edited(text: str, share: float, draw: random.Random) -> str:
    """The text with a share of its words replaced."""
    return " ".join(draw.choice(WORDS) if draw.random() < share else word for word in text.split())


def planted(count: int) -> tuple[list[str], list[str]]:
    draw = random.Random(0)
    others = [" ".join(draw.choices(WORDS, k=draw.randint(8, 60))) for _ in range(count)]
    texts = [edited(draw.choice(others), draw.choice([0.0, 0.02, 0.05, 0.3]), draw) for _ in range(count)]
    return texts, others


def elements(text: str) -> np.ndarray:
    return by_definition([normalized(text)]).shingles


def sets_of(texts: list[str]) -> Sets:
    found = shingled([normalized(text) for text in texts])
    return Sets(found.shingles, found.counts, found.bands)


def test_planted_near_duplicates_are_those_of_brute_force() -> None:
    texts, others = planted(300)
    found = near_duplicates(texts, others)
    sets, other_sets = ([elements(text) for text in side] for side in (texts, others))
    exact = {
        index for index, text in enumerate(sets) if max(jaccard(text, other) for other in other_sets) >= 0.8
    }  # fmt: skip
    assert {each.text for each in found} == exact
    assert 50 < len(exact) < 290
    assert all(each.similarity == jaccard(sets[each.text], other_sets[each.other]) for each in found)


def test_case_and_punctuation_do_not_matter_and_short_texts_must_be_equal() -> None:
    assert near_duplicates(["How do I reset it?"], ["how do I RESET it"])[0].similarity == 1.0
    assert near_duplicates(["Hello there"], ["Hello you"]) == []
    assert near_duplicates([], ["a"]) == near_duplicates(["a"], []) == []


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    text = "東京は日本の首都であり世界で最も人口の多い都市の一つです"
    assert near_duplicates([text.replace("一つ", "ひとつ")], [text], 0.6)
    assert near_duplicates(["大阪には美味しい食べ物がたくさんあると言われています"], [text], 0.1) == []


def test_no_chain_leads_to_a_representative() -> None:
    words = [f"w{number}" for number in range(70)]
    chain = [" ".join(words[start : start + 40]) for start in range(0, 30, 3)]  # neighbors share 35 of 41 triples
    sets = sets_of(chain)
    found = list(representatives(similar_rows(sets)))
    marked = {row for row, _, _ in found}
    assert all(other not in marked and similarity >= 0.8 for _, other, similarity in found)
    assert marked == {1, 3, 5, 7, 9}


def test_neighbors_below_the_threshold_are_kept_however_long_the_chain() -> None:
    words = [f"w{number}" for number in range(3000)]
    chain = [" ".join(words[start : start + 40]) for start in range(0, 2960, 5)]  # 33 of 43
    assert len(similar_rows(sets_of(chain)).rows) == 0


def test_the_most_similar_kept_row_is_the_representative() -> None:
    pairs = Pairs(np.array([1, 2, 2, 3]), np.array([0, 0, 1, 2]), np.array([0.9, 0.8, 0.95, 0.99]))
    assert list(representatives(pairs)) == [(1, 0, 0.9), (2, 0, 0.8)]


def test_kernels_are_as_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is None:
        pytest.skip("no compiler")
    texts, others = planted(200)
    sets = sets_of([*others, *texts, *others[:20]])
    for first in (0, len(others), EVERY):
        by_kernel = similar_rows(sets, given=first)
        with monkeypatch.context() as without:
            without.setattr(native, "library", lambda: None)
            plain = similar_rows(sets, given=first)
        np.testing.assert_array_equal(by_kernel.rows, plain.rows)
        np.testing.assert_array_equal(by_kernel.others, plain.others)
        np.testing.assert_array_equal(by_kernel.similarities, plain.similarities)
        assert len(plain.rows) > 50


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec=None, exclude_categories=())), min_size=1, max_size=4))
def test_any_text_is_shingled_as_defined(texts: list[str]) -> None:
    if native.library() is None:
        pytest.skip("no compiler")
    texts = [normalized(text) for text in texts]
    by_kernel, plain = shingled(texts), by_definition(texts)
    for name in ("shingles", "counts", "bands"):
        np.testing.assert_array_equal(getattr(by_kernel, name), getattr(plain, name))


@given(st.text(" \n\t\x1c\u00a0aBß"))
def test_case_and_white_space_do_not_count(text: str) -> None:
    assert normalized(text) == " ".join(text.casefold().split())


def test_the_kernels_constants_are_those_of_the_definitions() -> None:
    header = (native.LIBRARY.parent / "constants.h").read_text()
    for name in ("SHINGLE", "BANDS", "ROWS_PER_BAND"):
        assert f"#define {name} {getattr(shingles, name)}\n" in header
    for number, factor in enumerate(shingles.FACTORS, 1):
        assert f"#define FACTOR_{number} 0x{int(factor):X}u\n" in header
