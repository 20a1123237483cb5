"""The side of a row depends on its question, and on nothing else."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.example import Example, Source
from tunesmith.data.split import fold, is_held_out


def chat(question: str, answer: str = "a", row: int = 1) -> Example:
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example(Source("rows.jsonl", row), messages=turns)


@given(questions=st.lists(st.text(max_size=20), max_size=30), more=st.lists(st.text(max_size=20), max_size=30))
def test_a_row_keeps_its_side_when_the_file_grows(questions: list[str], more: list[str]) -> None:
    before = {question: is_held_out(chat(question, row=index), 0.3) for index, question in enumerate(questions)}
    grown = [*more, *reversed(questions)]
    after = {question: is_held_out(chat(question, row=index), 0.3) for index, question in enumerate(grown)}
    assert before.items() <= after.items()


@given(question=st.text(), one=st.text(), other=st.text())
def test_rows_with_the_same_question_are_on_one_side(question: str, one: str, other: str) -> None:
    assert is_held_out(chat(question, one), 0.5) == is_held_out(chat(question, other), 0.5)


def test_the_held_out_share_is_met_and_a_larger_share_contains_a_smaller() -> None:
    rows = [chat(f"question {n}") for n in range(20_000)]
    small, large = ({n for n, each in enumerate(rows) if is_held_out(each, share)} for share in (0.05, 0.1))
    assert abs(len(small) - 1000) < 4 * (20_000 * 0.05 * 0.95) ** 0.5
    assert small < large


def test_a_share_of_zero_holds_nothing_out() -> None:
    assert not any(is_held_out(chat(str(n)), 0.0) for n in range(1000))


def key_of(content: Any) -> bytes:
    """SHA-256 of the content that decides the side, as compact ASCII JSON with its keys sorted."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")).digest()


def hash_of(content: Any) -> float:
    """Its hash in [0, 1)."""
    return int.from_bytes(key_of(content)[:8], "big") / 2**64


def test_the_side_of_a_text_depends_on_its_content_not_its_position() -> None:
    texts = [Example(Source(f"{n % 3}.txt", n), text=f"text {n} ü") for n in range(300)]
    held_out = {f"text {n} ü" for n in range(300) if hash_of(f"text {n} ü") < 0.1}
    assert {each.text for each in texts if is_held_out(each, 0.1)} == held_out
    assert len(held_out) > 10


SYSTEM, DEVELOPER = {"role": "system", "content": "Be kind"}, {"role": "developer", "content": "Be brief"}
FIRST, ANSWER, SECOND = ({"role": role, "content": role} for role in ("user", "assistant", "user"))


@pytest.mark.parametrize(
    ("turns", "hashed"),
    [
        pytest.param([FIRST, ANSWER], [FIRST], id="the question"),
        pytest.param([FIRST, ANSWER, SECOND, ANSWER], [FIRST], id="only the first question"),
        pytest.param(
            [SYSTEM, DEVELOPER, FIRST, ANSWER], [SYSTEM, DEVELOPER, FIRST], id="with the system turns before it"
        ),
        pytest.param([ANSWER, SYSTEM, FIRST, ANSWER], [SYSTEM, FIRST], id="a greeting is ignored"),
        pytest.param([SYSTEM, ANSWER], [SYSTEM, ANSWER], id="without a question, all turns"),
    ],
)
def test_the_side_of_a_chat_depends_on_its_system_and_first_user_turns(turns: list[Any], hashed: list[Any]) -> None:
    example = Example(Source("rows.jsonl", 1), messages=tuple(turns))
    hash_value = hash_of(hashed)
    assert is_held_out(example, hash_value + 1e-9)
    assert not is_held_out(example, hash_value)
    assert not is_held_out(example, hash_value - 1e-9)
    assert is_held_out(example, frozenset({key_of(hashed)}))
    assert not is_held_out(example, frozenset({key_of([*hashed, "more"])}))


def test_a_share_of_one_holds_everything_out() -> None:
    assert all(is_held_out(chat(str(n)), share) for n in range(50) for share in (1.0, 1.5))
    assert not any(is_held_out(chat(str(n)), -0.5) for n in range(50))


def test_folds_have_similar_sizes_and_class_counts() -> None:
    def labeled(n: int) -> Example:
        return Example(Source("rows.jsonl", n), text=f"text {n}", label=("no", "yes")[n % 4 == 0])

    rows = [labeled(n) for n in range(24)]
    in_order = [
        key_of(f"text {n}")
        for _, ns in (("no", [n for n in range(24) if n % 4]), ("yes", range(0, 24, 4)))
        for n in sorted(ns, key=lambda n: key_of(f"text {n}"))
    ]
    for number in (1, 2, 3, 4):
        assert fold(rows, number, 4) == frozenset(in_order[number - 1 :: 4])
        assert fold([*reversed(rows), *rows], number, 4) == frozenset(in_order[number - 1 :: 4]), (
            "duplicate rows count once"
        )


def test_folds_of_values_are_not_sorted_by_value() -> None:
    rows = [Example(Source("rows.jsonl", n), text=f"text {n}", label=float(n)) for n in range(9)]
    in_order = sorted(key_of(f"text {n}") for n in range(9))
    assert [fold(rows, number, 3) for number in (1, 2, 3)] == [frozenset(in_order[n::3]) for n in range(3)]
