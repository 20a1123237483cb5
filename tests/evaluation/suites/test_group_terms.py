"""Terms of groups: swapped as whole words, in their case, and back again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluation.rows import Task
from tunesmith.evaluation.suites.bias import swapped_task
from tunesmith.evaluation.suites.group_terms import groups

OTHER_WORDS = ("walked", "home.", "bridge", "\n", "theme", "manual", "„the", "sofa,", "12", "heshe")

CASES = (str.lower, str.upper, lambda term: term[0].upper() + term[1:].lower())


@pytest.mark.parametrize("name", list(groups()))
def test_no_term_of_a_group_has_two_counterparts(name: str) -> None:
    terms = [term.casefold() for pair in groups()[name].pairs for term in pair]
    assert len(set(terms)) == len(terms)


@pytest.mark.parametrize("name", list(groups()))
@given(data=st.data())
def test_swapping_twice_gives_the_same_text_in_any_case(name: str, data: st.DataObject) -> None:
    group = groups()[name]
    pairs = st.tuples(st.sampled_from(group.pairs), st.sampled_from((0, 1)), st.sampled_from(CASES))
    drawn = data.draw(st.lists(st.one_of(st.sampled_from(OTHER_WORDS), pairs), max_size=10))
    words = [each if isinstance(each, str) else each[2](each[0][each[1]]) for each in drawn]
    others = [each if isinstance(each, str) else each[2](each[0][1 - each[1]]) for each in drawn]
    assert group.swapped(" ".join(words)) == " ".join(others)
    assert group.swapped(" ".join(others)) == " ".join(words)
    sides = {each[1] for each in drawn if not isinstance(each, str)}
    assert group.side(" ".join(words)) == (sides.pop() if len(sides) == 1 else None)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("He lost his key.", "She lost her key."),
        ("She lost her key.", "He lost his key."),
        ("I saw her.", "I saw him."),
        ("I saw her again and told her that", "I saw him again and told him that"),
        ("Give him hers, not his.", "Give her his, not hers."),
        ("HER BOOK, and Her dog", "HIS BOOK, and His dog"),
        ("Ask Mr. Smith or MS. Jones", "Ask Ms. Smith or MR. Jones"),
        ("Mary's mother", "John's father"),
        ("the human manager of Herman", "the human manager of Herman"),
    ],
)
def test_pronouns_are_swapped_by_the_word_that_follows(text: str, other: str) -> None:
    assert groups()["gender"].swapped(text) == other


def test_adjectives_name_a_group_only_before_a_word_for_people() -> None:
    age, ethnicity = groups()["age"], groups()["ethnicity"]
    assert age.swapped("An old man, 80 years old, on an old bridge") == "A young man, 80 years old, on an old bridge"
    assert ethnicity.swapped("White people drink white wine") == "Black people drink white wine"
    assert ethnicity.swapped("Translate it into German for a German family") == (
        "Translate it into German for a Turkish family"
    )


def test_the_article_before_a_term_follows_it() -> None:
    ethnicity, gender = groups()["ethnicity"], groups()["gender"]
    assert ethnicity.swapped("A European man and an American woman") == "An African man and a Mexican woman"
    assert ethnicity.swapped("An African man and a Mexican woman") == "A European man and an American woman"
    assert gender.swapped("A NEPHEW, AN UNCLE, A man") == "A NIECE, AN AUNT, A woman"
    assert groups()["age"].swapped("A YOUNG MAN or a YOUNG MAN") == "AN OLD MAN or an OLD MAN"


def test_a_name_may_be_in_several_groups() -> None:
    assert groups()["gender"].swapped("Emily called.") == "James called."
    assert groups()["ethnicity"].swapped("Emily called.") == "Lakisha called."
    assert groups()["gender"].side("James met her.") is None
    assert groups()["gender"].side("James met him.") == 0


def test_prompt_context_and_expected_answer_are_swapped_together() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "he"}]}
    task = Task(
        ({"role": "system", "content": "Ask him."}, call, {"role": "user", "content": "Go."}), "He goes.", "row"
    )
    other = swapped_task(task, groups()["gender"])
    assert other.chat == ({"role": "system", "content": "Ask her."}, call, {"role": "user", "content": "Go."})
    assert (other.expected, other.source) == ("She goes.", "row")
    assert swapped_task(task, groups()["religion"]) is task
