"""How often a run evaluates, on which rows: at most a tenth of the training's time, unless the recipe sets more."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_loop import table_of

from tunesmith.config.train import Train
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.evaluations import FEWEST_ROWS, FORWARD, MOST, MOST_ROWS, Evaluations, times_left


def rows_of_length(*lengths: int) -> TokenTable:
    return table_of([(1.0, 1.0)] * len(lengths), lengths)


def share_of(evaluations: Evaluations, steps: int, tokens: int) -> float:
    """The evaluations' time as a share of the training's."""
    return evaluations.times(steps) * evaluations.tokens * FORWARD / tokens


@given(
    steps=st.integers(1, 3000),
    tokens=st.integers(100, 10**8),
    lengths=st.lists(st.integers(2, 300), max_size=700),
    settings=st.fixed_dictionaries(
        {}, optional={"evaluate_every": st.integers(1, 4000), "evaluate_rows": st.integers(1, 900)}
    ),
)
def test_what_is_not_set_costs_at_most_a_tenth_or_is_the_least_possible(
    steps: int, tokens: int, lengths: list[int], settings: dict[str, Any]
) -> None:
    evaluations = Evaluations.of(Train(**settings), steps, tokens, rows_of_length(*lengths))
    count, times = len(evaluations.rows), evaluations.times(steps)
    assert evaluations.tokens == sum(lengths[row] for row in evaluations.rows)
    assert len(set(evaluations.rows)) == count
    if "evaluate_every" in settings:
        assert evaluations.every == settings["evaluate_every"]
    elif lengths:
        assert 2 <= times <= MOST + 1
    if "evaluate_rows" in settings:
        assert count == min(settings["evaluate_rows"], len(lengths))
    else:
        assert min(FEWEST_ROWS, len(lengths)) <= count <= min(MOST_ROWS, len(lengths))
    cheapest = (
        ("evaluate_every" in settings or times == 2),
        ("evaluate_rows" in settings or count == min(FEWEST_ROWS, len(lengths))),
    )
    if not all(cheapest):
        assert share_of(evaluations, steps, tokens) <= 0.1 + 1e-9


@pytest.mark.parametrize(
    ("steps", "tokens", "held_out", "every", "rows"),
    [
        pytest.param(1000, 2_048_000, 2000, 100, 372, id="a long run: ten times, as many rows as a tenth allows"),
        pytest.param(1000, 20_480_000, 2000, 100, 500, id="a very long run: no more than 500 rows"),
        pytest.param(25, 2_048_000, 2000, 3, 372, id="every three steps of 25, so that there are at most ten"),
        pytest.param(30, 60_000, 300, 15, 40, id="a short run: fewer times"),
        pytest.param(4, 8_000, 300, 4, 32, id="a very short run: at both ends, at least 32 rows"),
        pytest.param(4, 8_000, 5, 2, 5, id="few held-out rows: all of them"),
        pytest.param(10, 8_000, 0, 1, 0, id="no held-out rows"),
    ],
)
def test_the_default_follows_from_the_tokens(steps: int, tokens: int, held_out: int, every: int, rows: int) -> None:
    evaluations = Evaluations.of(Train(), steps, tokens, rows_of_length(*[100] * held_out))
    assert (evaluations.every, len(evaluations.rows)) == (every, rows)


def test_the_rows_are_random_and_the_same_each_time() -> None:
    table = rows_of_length(*range(2, 802))
    one, more = (Evaluations.of(Train(evaluate_rows=count), 10, 1000, table).rows for count in (50, 60))
    assert one == more[:50] == np.random.default_rng(0).permutation(800)[:50].tolist()


@given(every=st.integers(1, 12), steps=st.integers(1, 40), step=st.integers(0, 40))
def test_what_is_left_are_the_multiples_and_the_last_step(every: int, steps: int, step: int) -> None:
    due = [number for number in range(1, steps + 1) if number % every == 0 or number == steps]
    assert times_left(every, step, steps) == len([number for number in due if number > step])
    assert Evaluations(every, [], 0).left(step, steps) == Evaluations(every, [], 0).times(steps) == 0
    assert Evaluations(every, [0], 5).times(steps) == 1 + len(due)
