"""The length policy: the exact tokens and loss mask of rows over `data.max_length`, and the counts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Source
from tunesmith.data.length_policy import apply_length_policy
from tunesmith.data.report import DataReport
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError

LIMIT = 8


def recipe_for(overflow: str = "auto", objective: Any = "instruction", limit: int = LIMIT) -> Recipe:
    data = {"train": "nowhere.jsonl", "max_length": limit, "overflow": overflow}
    return Recipe.load({"data": data, "objective": objective})


def row(count: int, marked: Sequence[int], *targets: Sequence[float], number: int = 1, first: int = 10) -> Any:
    """A row of the ids first, first + 1, …, with loss at these positions."""
    marks = np.zeros(count, np.bool_)
    marks[list(marked)] = True
    return np.arange(first, first + count, dtype=np.int32), marks, Source("rows.jsonl", number), *map(tuple, targets)


def rows_of(table: TokenTable) -> list[tuple[list[int], list[int], int, list[float] | None]]:
    """(ids, loss positions, row number, targets) of each row."""
    rows = []
    for index, (ids, marks) in enumerate(table):
        targets = None if table.targets is None else table.targets_of(index).tolist()
        rows.append((ids.tolist(), np.flatnonzero(marks).tolist(), int(table.row[index]), targets))
    return rows


def apply(recipe: Recipe, *rows: Any, closing: int = 0) -> tuple[list[Any], DataReport]:
    report = DataReport()
    return rows_of(apply_length_policy(recipe.data, recipe.objective, TokenTable.build(rows), report, closing)), report


SHORT = row(8, [6, 7], number=1)
LONG = row(20, [3, 4, 5, 19], number=2, first=30)


def test_a_truncated_row_keeps_its_first_tokens_and_their_loss_mask() -> None:
    kept_rows, report = apply(recipe_for("truncate"), SHORT, LONG)
    assert kept_rows == [(list(range(10, 18)), [6, 7], 1, None), (list(range(30, 38)), [3, 4, 5], 2, None)]
    assert (report.truncated, report.dropped, report.split, report.unlearnable) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("marked", "kept"),
    [
        pytest.param([7], True, id="the last kept token has loss"),
        pytest.param([1], True, id="the second token has loss"),
        pytest.param([0], False, id="the first token cannot be predicted"),
        pytest.param([8, 9], False, id="all loss tokens are cut"),
    ],
)
def test_a_truncated_row_without_loss_tokens_is_refused(marked: list[int], kept: bool) -> None:
    if kept:
        assert apply(recipe_for("truncate"), row(10, marked))[0] == [(list(range(10, 18)), marked, 1, None)]
        return
    with pytest.raises(
        UserError, match=r"Truncated to data\.max_length \(8 tokens\), 1 examples .*: rows.jsonl row 1\. "
    ):
        apply(recipe_for("truncate"), row(10, marked))


def test_up_to_five_rows_without_loss_tokens_are_named() -> None:
    rows = [row(10, [9], number=number) for number in range(1, 8)]
    named = ", ".join(f"rows.jsonl row {number}" for number in range(1, 6))
    with pytest.raises(UserError, match=rf"7 examples have no loss token left: {named}\. Raise"):
        apply(recipe_for("truncate"), *rows)


def test_dropping_rows_keeps_the_others_unchanged() -> None:
    kept_rows, report = apply(recipe_for("drop"), LONG, SHORT, LONG)
    assert kept_rows == [(list(range(10, 18)), [6, 7], 1, None)]
    assert (report.dropped, report.truncated, report.split) == (2, 0, 0)


def test_up_to_five_refused_rows_are_named_with_their_lengths() -> None:
    with pytest.raises(UserError) as one:
        apply(recipe_for("refuse"), SHORT, LONG)
    assert str(one.value).startswith(
        "1 of 2 examples are longer than data.max_length (8 tokens): rows.jsonl row 2 (20 tokens). Raise"
    )
    five = [row(1200 + number, [9], number=number) for number in range(1, 6)]
    named = ", ".join(f"rows.jsonl row {number} ({1200 + number:,} tokens)" for number in range(1, 6))
    with pytest.raises(UserError) as exactly:
        apply(recipe_for("refuse"), *five)
    assert f"(8 tokens): {named}. Raise" in str(exactly.value)
    with pytest.raises(UserError) as more:
        apply(recipe_for("refuse"), *five, row(9, [8], number=6), row(9, [8], number=7))
    assert f"(8 tokens): {named} and 2 more. Raise" in str(more.value)


@pytest.mark.parametrize(
    ("objective", "policy"),
    [("instruction", "refuse"), ("text", "split"), ({"kind": "text", "concatenate": True}, "joined")],
)
def test_auto_is_the_policy_of_the_objective(objective: Any, policy: str) -> None:
    if policy == "refuse":
        with pytest.raises(UserError, match="are longer than"):
            apply(recipe_for(objective=objective), LONG)
        return
    _, report = apply(recipe_for(objective=objective), LONG)
    assert (report.split, report.joined) == ((1, 0) if policy == "split" else (0, 2)), (
        "the piece in the middle has no loss token"
    )


def test_split_pieces_repeat_the_last_token_of_the_piece_before_without_loss() -> None:
    kept_rows, report = apply(recipe_for("split"), SHORT, row(17, range(17), number=2, first=100))
    assert kept_rows == [
        (list(range(10, 18)), [6, 7], 1, None),
        (list(range(100, 108)), list(range(8)), 2, None),
        (list(range(107, 115)), list(range(1, 8)), 2, None),
        (list(range(114, 117)), [1, 2], 2, None),
    ]
    assert (report.split, report.unlearnable, report.truncated) == (1, 0, 0)


def test_pieces_without_loss_tokens_are_left_out_and_counted() -> None:
    kept_rows, report = apply(recipe_for("split"), row(30, [0, 7, 22], number=3, first=0))
    assert kept_rows == [(list(range(8)), [0, 7], 3, None), (list(range(21, 29)), [1], 3, None)]
    assert (report.split, report.unlearnable) == (1, 3), "7 to 14, 14 to 21, and 28 to 29"


@settings(max_examples=80)
@given(marks=st.lists(st.booleans(), min_size=1, max_size=60), limit=st.integers(8, 20))
def test_split_pieces_cover_a_text_with_loss_once_per_token(marks: list[bool], limit: int) -> None:
    loss_positions = [index for index, marked in enumerate(marks) if marked]
    report = DataReport()
    recipe = recipe_for("split", limit=limit)
    rows = TokenTable.build([row(len(marks), loss_positions, first=0)])
    table = apply_length_policy(recipe.data, recipe.objective, rows, report)
    read, predicted = set(), []
    for ids, positions, _, _ in rows_of(table):
        assert ids == list(range(ids[0], ids[0] + len(ids))), "a piece is a span of the text"
        assert len(ids) <= limit
        read |= set(ids)
        predicted += [ids[position] for position in positions if position]
    assert predicted == [index for index in loss_positions if index], "in order, each once, except the very first"
    if all(marks) and len(marks) > limit:
        assert read == set(range(len(marks)))
        assert sorted(len(ids) for ids, *_ in rows_of(table))[1:] == [limit] * (len(table) - 1)


def test_joined_rows_are_cut_at_the_limit_with_the_source_they_begin_in() -> None:
    rows = [row(count, range(count), number=number, first=10 * number) for number, count in ((1, 3), (2, 5), (3, 9))]
    kept_rows, report = apply(recipe_for(objective={"kind": "text", "concatenate": True}), *rows)
    assert kept_rows == [
        ([10, 11, 12, 20, 21, 22, 23, 24], list(range(8)), 1, None),
        ([24, 30, 31, 32, 33, 34, 35, 36], list(range(1, 8)), 2, None),
        ([36, 37, 38], [1, 2], 3, None),
    ]
    assert (report.joined, report.split) == (3, 0)


def test_a_joined_row_that_begins_exactly_at_a_row_has_its_source() -> None:
    rows = [row(7, range(7), number=1, first=10), row(7, range(7), number=2, first=20)]
    kept_rows, _ = apply(recipe_for(objective={"kind": "text", "concatenate": True}), *rows)
    assert [(ids[0], number) for ids, _, number, _ in kept_rows] == [(10, 1), (20, 2)]


CLASSES = {"kind": "classification", "labels": ["no", "yes"]}


@pytest.mark.parametrize("closing", [0, 1, 2])
def test_a_truncated_text_keeps_its_start_its_closing_tokens_and_its_class(closing: int) -> None:
    rows = row(8, [7], [1.0], number=1), row(12, [11], [0.0], number=2, first=50)
    kept_rows, report = apply(recipe_for("truncate", CLASSES), *rows, closing=closing)
    assert kept_rows == [
        (list(range(10, 18)), [7], 1, [1.0]),
        ([*range(50, 58 - closing), *range(62 - closing, 62)], [7], 2, [0.0]),
    ]
    assert (report.truncated, report.dropped) == (1, 0)


def test_texts_with_classes_can_be_dropped_or_refused() -> None:
    rows = row(8, [7], [1.0], number=1), row(12, [11], [0.0], number=2, first=50)
    kept_rows, report = apply(recipe_for("drop", CLASSES), *rows, closing=1)
    assert kept_rows == [(list(range(10, 18)), [7], 1, [1.0])]
    assert (report.truncated, report.dropped) == (0, 1)
    with pytest.raises(UserError, match=r"rows.jsonl row 2 \(12 tokens\)"):
        apply(recipe_for("refuse", CLASSES), *rows)


def test_cut_words_lose_their_tags_and_rows_without_tags_are_left_out() -> None:
    rows = (
        row(8, [1, 6], [4.0, 5.0], number=1),
        row(12, [1, 3, 9, 10], [7.0, 8.0, 9.0, 6.0], number=2, first=50),
        row(12, [7, 9, 10], [7.0, 8.0, 9.0], number=3, first=70),
    )
    kept_rows, report = apply(
        recipe_for("truncate", {"kind": "token_classification", "labels": ["O"]}), *rows, closing=1
    )
    assert kept_rows == [
        (list(range(10, 18)), [1, 6], 1, [4.0, 5.0]),
        ([50, 51, 52, 53, 54, 55, 56, 61], [1, 3], 2, [7.0, 8.0]),
    ]
    assert (report.truncated, report.unlearnable) == (2, 1)


def test_each_compared_text_is_cut_and_keeps_the_mark_on_its_last_token() -> None:
    short = row(16, [7, 15], [], number=1)  # two texts of eight tokens: the row is long, no text is
    second = row(14, [4, 13], [], number=2, first=40)  # of five and nine
    first = row(15, [9, 14], [], number=3, first=70)  # of ten and five
    kept_rows, report = apply(recipe_for("truncate", "embedding"), short, second, first, closing=1)
    assert kept_rows == [
        (list(range(10, 26)), [7, 15], 1, []),
        ([*range(40, 45), *range(45, 52), 53], [4, 12], 2, []),
        ([*range(70, 77), 79, *range(80, 85)], [7, 12], 3, []),
    ]
    assert (report.truncated, report.dropped) == (2, 0)
    only, report = apply(recipe_for("drop", "embedding"), short, second, first)
    assert ([number for _, _, number, _ in only], report.dropped) == ([1], 2)


def test_a_table_without_long_rows_is_returned_unchanged() -> None:
    for recipe, rows in (
        (recipe_for("refuse"), [SHORT]),
        (recipe_for("refuse", CLASSES), [row(8, [7], [1.0])]),
        (recipe_for("refuse", "embedding"), [row(16, [7, 15], [])]),
    ):
        table = TokenTable.build(rows)
        assert apply_length_policy(recipe.data, recipe.objective, table, DataReport()) is table
