"""Which side a row belongs to follows from what it asks, and from nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.example import Example, Source
from tunesmith.data.split import content_hash, is_held_out


def chat(question: str, answer: str = "a", row: int = 1) -> Example:
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example(Source("rows.jsonl", row), messages=turns)


@given(questions=st.lists(st.text(max_size=20), max_size=30), more=st.lists(st.text(max_size=20), max_size=30))
def test_a_row_stays_on_its_side_however_the_file_grows(questions: list[str], more: list[str]) -> None:
    before = {question: is_held_out(chat(question, row=at), 0.3) for at, question in enumerate(questions)}
    grown = [*more, *reversed(questions)]
    after = {question: is_held_out(chat(question, row=at), 0.3) for at, question in enumerate(grown)}
    assert before.items() <= after.items()


@given(question=st.text(), one=st.text(), other=st.text())
def test_rows_that_ask_the_same_are_never_on_both_sides(question: str, one: str, other: str) -> None:
    assert is_held_out(chat(question, one), 0.5) == is_held_out(chat(question, other), 0.5)


def test_the_share_is_met_and_a_larger_one_holds_the_smaller() -> None:
    rows = [chat(f"question {n}") for n in range(20_000)]
    small, large = ({n for n, each in enumerate(rows) if is_held_out(each, share)} for share in (0.05, 0.1))
    assert abs(len(small) - 1000) < 4 * (20_000 * 0.05 * 0.95) ** 0.5
    assert small < large


def test_nothing_is_held_out_of_a_share_of_zero() -> None:
    assert not any(is_held_out(chat(str(n)), 0.0) for n in range(1000))


def test_texts_are_told_apart_by_what_they_say() -> None:
    texts = [Example(Source("a.txt", n), text=f"text {n}") for n in range(1000)]
    assert 50 < sum(is_held_out(each, 0.1) for each in texts) < 150
    assert content_hash(texts[0]) == content_hash(Example(Source("b.txt", 9), text="text 0"))
    assert content_hash(texts[0]) != content_hash(texts[1])
