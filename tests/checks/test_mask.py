"""Masking: the same value by the same pseudonym everywhere, nothing left to find, and nothing else changed."""

from hypothesis import given, settings
from hypothesis import strategies as st
from test_personal_data import FOUND, NEAR_MISSES  # type: ignore[import-not-found]
from test_secrets import FOUND as SECRET  # type: ignore[import-not-found]

from tunesmith.checks.mask import find_sensitive, mask
from tunesmith.checks.personal_data import personal_data

SENSITIVE = [value for _, _, value in FOUND] + [*SECRET.values()]
PIECES = st.sampled_from([*SENSITIVE, *NEAR_MISSES, " ", "\n", ", ", "call ", "my card is ", "-", "0", "12", "+"])
TEXTS = st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=8).map("".join))


@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_nothing_is_left_to_find_and_masking_twice_changes_nothing(text: str) -> None:
    masked = mask(text).value
    assert find_sensitive(masked) == []
    assert mask(masked).value == masked


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SENSITIVE), st.text("abc xyz", max_size=9), st.integers())
def test_a_value_has_the_same_pseudonym_wherever_it_stands(value: str, around: str, seed: int) -> None:
    alone, inside = mask(value, seed=seed).value, mask(f"{around} {value} {around}", seed=seed).value
    assert inside == f"{around} {alone} {around}"


def test_case_and_grouping_make_no_other_person() -> None:
    assert mask("Ann@Example.org").value == mask("ann@example.org").value
    assert mask("call +49 30 901820").value == mask("call +49-30-901820").value


def test_another_seed_gives_other_pseudonyms() -> None:
    assert mask("ann@example.org", seed="a long secret").value != mask("ann@example.org", seed="another").value


def test_pseudonyms_keep_the_form_of_their_kind() -> None:
    assert mask("DE89 3704 0044 0532 0130 00").value.startswith("DE00 ")
    assert [len(group) for group in mask("4111-1111-1111-1111").value.split("-")] == [4, 4, 4, 4]
    assert mask("ann@example.org").value.endswith("@example.com")
    assert mask("203.0.113.7").value.startswith("0.")


def test_a_row_keeps_its_shape_and_counts_what_was_replaced() -> None:
    row = {"messages": [{"role": "user", "content": "I am ann@example.org"}], "n": 3, "ann@example.org": None}
    masked = mask(row)
    assert masked.value["messages"][0]["content"].startswith("I am person")
    assert masked.value["n"] == 3
    assert "ann@example.org" in masked.value
    assert masked.kinds == {"email": 1}


def test_only_what_is_asked_for_is_replaced() -> None:
    text = f"ann@example.org {SECRET['github_token']}"
    assert SECRET["github_token"] in mask(text, find=personal_data).value
