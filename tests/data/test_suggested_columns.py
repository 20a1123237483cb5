"""What the columns of rows in no known format could be."""

from typing import Any

import pytest

from tunesmith.data.example import Row, Source
from tunesmith.data.format_detection import objective_of_rows
from tunesmith.data.suggested_columns import suggested
from tunesmith.errors import UserError

WORDS = "one two three four five six seven eight nine ten".split()


def rows(**columns: Any) -> list[Row]:
    """Ten rows; a column is a function of the row's number."""
    return [
        Row({name: value(number) for name, value in columns.items()}, Source("rows.csv", number))
        for number in range(10)
    ]


def long(number: int) -> str:
    return f"a document about {WORDS[number]} things that is longer"


def short(number: int) -> str:
    return f"it is {WORDS[number]}"


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        (
            {"reference_summary": short, "original_text": long},
            {"question": "original_text", "answer": "reference_summary"},
        ),
        ({"body": long, "other": short}, {"question": "body", "answer": "other"}),
        ({"instructions": long, "outputs": short}, {"instruction": "instructions", "output": "outputs"}),
        ({"more": long, "less": lambda n: long(n) + " now"}, {"chosen": "more", "rejected": "less"}),
        ({"uid": str, "review": long, "stars": lambda n: n % 2}, {"text": "review", "label": "stars"}),
        ({"page": long, "url": lambda n: f"https://example.org/a b c {n}"}, {"text": "page"}),
    ],
)
def test_the_likeliest_reading_comes_first_and_is_in_the_message(columns: Any, first: dict[str, str]) -> None:
    found = rows(**columns)
    best = suggested(found)[0]
    assert best.columns == first
    with pytest.raises(UserError, match=r"^rows\.csv: no known format has the columns") as caught:
        objective_of_rows(found)
    named = ", ".join(f"{field}: {column}" for field, column in first.items())
    assert f"data.columns: {{{named}}}" in str(caught.value)


def test_every_suggestion_can_be_written_into_a_recipe() -> None:
    found = rows(title_text=long, case=lambda n: "abc"[n % 3], answer_text=short)
    assert len(suggested(found)) == 3
    kinds = [
        objective_of_rows(found, each.columns, "text" if "text}" in each.more else "auto") for each in suggested(found)
    ]
    assert kinds == [
        ("question_answer", "instruction"), ("classification", "classification"), ("text", "text"),
    ]  # fmt: skip


def test_numbers_alone_suggest_nothing() -> None:
    assert suggested(rows(a=lambda n: n, b=lambda n: n / 2)) == []
