"""What is kept of a row over `data.max_length`: its tokens and marks exactly, and what is counted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Source
from tunesmith.data.length_policy import fit
from tunesmith.data.report import DataReport
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError

LIMIT = 8


def recipe_for(overflow: str = "auto", objective: Any = "instruction", limit: int = LIMIT) -> Recipe:
    data = {"train": "nowhere.jsonl", "max_length": limit, "overflow": overflow}
    return Recipe.load({"data": data, "objective": objective})


def row(count: int, marked: Sequence[int], *told: Sequence[float], number: int = 1, first: int = 10) -> Any:
    """A row of the ids first, first + 1, … with marks at these places."""
    marks = np.zeros(count, np.bool_)
    marks[list(marked)] = True
    return np.arange(first, first + count, dtype=np.int32), marks, Source("rows.jsonl", number), *map(tuple, told)


def rows_of(table: TokenTable) -> list[tuple[list[int], list[int], int, list[float] | None]]:
    """(ids, marked places, row number, targets) of each row."""
    found = []
    for place, (ids, marks) in enumerate(table):
        told = None if table.targets is None else table.targets_of(place).tolist()
        found.append((ids.tolist(), np.flatnonzero(marks).tolist(), int(table.row[place]), told))
    return found


def fitted(recipe: Recipe, *rows: Any, closing: int = 0) -> tuple[list[Any], DataReport]:
    report = DataReport()
    return rows_of(fit(recipe, TokenTable.build(rows), report, closing)), report


SHORT = row(8, [6, 7], number=1)
LONG = row(20, [3, 4, 5, 19], number=2, first=30)


def test_a_truncated_row_keeps_its_first_tokens_and_their_marks() -> None:
    found, report = fitted(recipe_for("truncate"), SHORT, LONG)
    assert found == [(list(range(10, 18)), [6, 7], 1, None), (list(range(30, 38)), [3, 4, 5], 2, None)]
    assert (report.truncated, report.dropped, report.split, report.unlearnable) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("marked", "kept"),
    [
        pytest.param([7], True, id="the last token that is kept is learnt"),
        pytest.param([1], True, id="the second is learnt"),
        pytest.param([0], False, id="the first cannot be predicted"),
        pytest.param([8, 9], False, id="all that is learnt is cut off"),
    ],
)
def test_a_row_that_would_teach_nothing_once_truncated_is_refused(marked: list[int], kept: bool) -> None:
    if kept:
        assert fitted(recipe_for("truncate"), row(10, marked))[0] == [(list(range(10, 18)), marked, 1, None)]
        return
    with pytest.raises(
        UserError, match=r"Truncated to data\.max_length \(8 tokens\), 1 examples .*: rows.jsonl row 1\. "
    ):
        fitted(recipe_for("truncate"), row(10, marked))


def test_rows_that_truncation_would_empty_are_named_up_to_five() -> None:
    rows = [row(10, [9], number=number) for number in range(1, 8)]
    named = ", ".join(f"rows.jsonl row {number}" for number in range(1, 6))
    with pytest.raises(UserError, match=rf"7 examples have no learnt token left: {named}\. Raise"):
        fitted(recipe_for("truncate"), *rows)


def test_dropped_rows_leave_the_others_as_they_are() -> None:
    found, report = fitted(recipe_for("drop"), LONG, SHORT, LONG)
    assert found == [(list(range(10, 18)), [6, 7], 1, None)]
    assert (report.dropped, report.truncated, report.split) == (2, 0, 0)


def test_refused_rows_are_named_with_their_lengths_up_to_five() -> None:
    with pytest.raises(UserError) as one:
        fitted(recipe_for("refuse"), SHORT, LONG)
    assert str(one.value).startswith(
        "1 of 2 examples are longer than data.max_length (8 tokens): rows.jsonl row 2 (20 tokens). Raise"
    )
    five = [row(1200 + number, [9], number=number) for number in range(1, 6)]
    named = ", ".join(f"rows.jsonl row {number} ({1200 + number:,} tokens)" for number in range(1, 6))
    with pytest.raises(UserError) as exactly:
        fitted(recipe_for("refuse"), *five)
    assert f"(8 tokens): {named}. Raise" in str(exactly.value)
    with pytest.raises(UserError) as more:
        fitted(recipe_for("refuse"), *five, row(9, [8], number=6), row(9, [8], number=7))
    assert f"(8 tokens): {named} and 2 more. Raise" in str(more.value)


@pytest.mark.parametrize(
    ("objective", "how"),
    [("instruction", "refuse"), ("text", "split"), ({"kind": "text", "concatenate": True}, "joined")],
)
def test_auto_is_the_objective_s_own_way(objective: Any, how: str) -> None:
    if how == "refuse":
        with pytest.raises(UserError, match="are longer than"):
            fitted(recipe_for(objective=objective), LONG)
        return
    _, report = fitted(recipe_for(objective=objective), LONG)
    assert (report.split, report.joined) == ((1, 0) if how == "split" else (0, 2)), (
        "the piece in the middle teaches nothing"
    )


def test_split_pieces_begin_with_the_last_token_of_the_one_before_which_is_not_learnt_again() -> None:
    found, report = fitted(recipe_for("split"), SHORT, row(17, range(17), number=2, first=100))
    assert found == [
        (list(range(10, 18)), [6, 7], 1, None),
        (list(range(100, 108)), list(range(8)), 2, None),
        (list(range(107, 115)), list(range(1, 8)), 2, None),
        (list(range(114, 117)), [1, 2], 2, None),
    ]
    assert (report.split, report.unlearnable, report.truncated) == (1, 0, 0)


def test_pieces_that_teach_nothing_are_left_out_and_counted() -> None:
    found, report = fitted(recipe_for("split"), row(30, [0, 7, 22], number=3, first=0))
    assert found == [(list(range(8)), [0, 7], 3, None), (list(range(21, 29)), [1], 3, None)]
    assert (report.split, report.unlearnable) == (1, 3), "7 to 14, 14 to 21, and 28 to 29"


@settings(max_examples=80, deadline=None)
@given(marks=st.lists(st.booleans(), min_size=1, max_size=60), limit=st.integers(8, 20))
def test_split_pieces_cover_a_text_and_learn_each_token_once(marks: list[bool], limit: int) -> None:
    loss_mask = [place for place, marked in enumerate(marks) if marked]
    report = DataReport()
    table = fit(recipe_for("split", limit=limit), TokenTable.build([row(len(marks), loss_mask, first=0)]), report)
    read, predicted = set(), []
    for ids, places, _, _ in rows_of(table):
        assert ids == list(range(ids[0], ids[0] + len(ids))), "a piece is a stretch of the text"
        assert len(ids) <= limit
        read |= set(ids)
        predicted += [ids[place] for place in places if place]
    assert predicted == [place for place in loss_mask if place], "in order, each once, but for the first of all"
    if all(marks) and len(marks) > limit:
        assert read == set(range(len(marks)))
        assert sorted(len(ids) for ids, *_ in rows_of(table))[1:] == [limit] * (len(table) - 1)


def test_joined_rows_are_cut_every_limit_tokens_and_named_after_the_row_they_begin_in() -> None:
    rows = [row(count, range(count), number=number, first=10 * number) for number, count in ((1, 3), (2, 5), (3, 9))]
    found, report = fitted(recipe_for(objective={"kind": "text", "concatenate": True}), *rows)
    assert found == [
        ([10, 11, 12, 20, 21, 22, 23, 24], list(range(8)), 1, None),
        ([24, 30, 31, 32, 33, 34, 35, 36], list(range(1, 8)), 2, None),
        ([36, 37, 38], [1, 2], 3, None),
    ]
    assert (report.joined, report.split) == (3, 0)


def test_a_joined_row_that_begins_with_a_row_s_first_token_is_named_after_that_one() -> None:
    rows = [row(7, range(7), number=1, first=10), row(7, range(7), number=2, first=20)]
    found, _ = fitted(recipe_for(objective={"kind": "text", "concatenate": True}), *rows)
    assert [(ids[0], number) for ids, _, number, _ in found] == [(10, 1), (20, 2)]


CLASSES = {"kind": "classification", "labels": ["no", "yes"]}


@pytest.mark.parametrize("closing", [0, 1, 2])
def test_a_text_with_a_class_keeps_its_beginning_its_closing_tokens_and_what_is_told_of_it(closing: int) -> None:
    rows = row(8, [7], [1.0], number=1), row(12, [11], [0.0], number=2, first=50)
    found, report = fitted(recipe_for("truncate", CLASSES), *rows, closing=closing)
    assert found == [
        (list(range(10, 18)), [7], 1, [1.0]),
        ([*range(50, 58 - closing), *range(62 - closing, 62)], [7], 2, [0.0]),
    ]
    assert (report.truncated, report.dropped) == (1, 0)


def test_texts_with_classes_are_dropped_or_refused_too() -> None:
    rows = row(8, [7], [1.0], number=1), row(12, [11], [0.0], number=2, first=50)
    found, report = fitted(recipe_for("drop", CLASSES), *rows, closing=1)
    assert found == [(list(range(10, 18)), [7], 1, [1.0])]
    assert (report.truncated, report.dropped) == (0, 1)
    with pytest.raises(UserError, match=r"rows.jsonl row 2 \(12 tokens\)"):
        fitted(recipe_for("refuse", CLASSES), *rows)


def test_tags_go_with_the_words_that_are_cut_off_and_rows_without_any_are_left_out() -> None:
    rows = (
        row(8, [1, 6], [4.0, 5.0], number=1),
        row(12, [1, 3, 9, 10], [7.0, 8.0, 9.0, 6.0], number=2, first=50),
        row(12, [7, 9, 10], [7.0, 8.0, 9.0], number=3, first=70),
    )
    found, report = fitted(recipe_for("truncate", {"kind": "token_classification", "labels": ["O"]}), *rows, closing=1)
    assert found == [
        (list(range(10, 18)), [1, 6], 1, [4.0, 5.0]),
        ([50, 51, 52, 53, 54, 55, 56, 61], [1, 3], 2, [7.0, 8.0]),
    ]
    assert (report.truncated, report.unlearnable) == (2, 1)


def test_compared_texts_are_cut_one_by_one_and_keep_their_last_token_marked() -> None:
    fitting = row(16, [7, 15], [], number=1)  # two texts of eight tokens: the row is long, no text is
    second = row(14, [4, 13], [], number=2, first=40)  # of five and nine
    first = row(15, [9, 14], [], number=3, first=70)  # of ten and five
    found, report = fitted(recipe_for("truncate", "embedding"), fitting, second, first, closing=1)
    assert found == [
        (list(range(10, 26)), [7, 15], 1, []),
        ([*range(40, 45), *range(45, 52), 53], [4, 12], 2, []),
        ([*range(70, 77), 79, *range(80, 85)], [7, 12], 3, []),
    ]
    assert (report.truncated, report.dropped) == (2, 0)
    only, report = fitted(recipe_for("drop", "embedding"), fitting, second, first)
    assert ([number for _, _, number, _ in only], report.dropped) == ([1], 2)


def test_a_table_without_a_long_row_is_given_back_as_it_is() -> None:
    for recipe, rows in (
        (recipe_for("refuse"), [SHORT]),
        (recipe_for("refuse", CLASSES), [row(8, [7], [1.0])]),
        (recipe_for("refuse", "embedding"), [row(16, [7, 15], [])]),
    ):
        table = TokenTable.build(rows)
        assert fit(recipe, table, DataReport()) is table
