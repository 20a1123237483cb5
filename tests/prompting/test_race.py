"""Successive halving finds the best candidate, and calls a tie a tie."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri

from tunesmith.prompting.race import Place, race, schedule
from tunesmith.statistics.measured import Better, Measured, mean_of

ROWS = 200


def drawn(chances: dict[str, float], seed: int, rows: int = ROWS) -> dict[str, NDArray[np.float64]]:
    """Hits of each candidate on the same rows, some of which are harder than others."""
    draw = np.random.default_rng(seed)
    hard = draw.normal(size=rows)
    found = {}
    for name, chance in chances.items():
        luck = (hard + draw.normal(size=rows)) / 2**0.5
        found[name] = (luck < ndtri(chance)).astype(np.float64)
    return found


def raced(values: dict[str, NDArray[np.float64]], better: Better = "higher") -> tuple[dict[str, Place], dict[str, int]]:
    asked: dict[str, int] = {}

    def measure(names: Sequence[str], number: int, rows: int) -> dict[str, Measured]:
        asked.update(dict.fromkeys(names, rows))
        units = [str(row) for row in range(rows)]
        return {name: mean_of(values[name][:rows], units, "hits", "", better) for name in names}

    return race(list(values), measure, len(next(iter(values.values())))), asked


def winner_of(places: dict[str, Place]) -> str:
    (name,) = [name for name, place in places.items() if place.why == "winner"]
    return name


@pytest.mark.parametrize(
    ("candidates", "rows", "steps"),
    [
        (2, 200, [200]),
        (3, 200, [100, 200]),
        (8, 200, [50, 100, 200]),
        (9, 200, [25, 50, 100, 200]),
        (8, 20, [8, 10, 20]),
    ],
)
def test_rounds_double_the_rows_and_halve_the_candidates_to_two(candidates: int, rows: int, steps: list[int]) -> None:
    assert schedule(candidates, rows) == steps


def test_the_truly_best_candidate_wins_in_most_draws_with_fewer_answers() -> None:
    chances = {f"c{n}": 0.45 for n in range(9)} | {"best": 0.7}
    wins, answers = 0, []
    for seed in range(40):
        places, asked = raced(drawn(chances, seed))
        wins += winner_of(places) == "best"
        answers.append(sum(asked.values()))
    assert wins >= 34
    assert max(answers) <= 0.4 * ROWS * len(chances)


def test_equally_good_candidates_are_a_tie_in_nearly_all_draws() -> None:
    shown = 0
    for seed in range(60):
        places, _ = raced(drawn({f"c{n}": 0.5 for n in range(6)}, seed))
        shown += any(place.why == "shown to be worse" for place in places.values())
        last = [place.why for place in places.values() if place.round == 3]
        assert sorted(last) == ["not shown to be worse", "winner"] or "shown to be worse" in last
    assert shown <= 6, "5 % of the draws are expected, at most"


def test_one_that_is_shown_to_be_better_than_all_others_ends_the_race() -> None:
    values = {"good": np.ones(ROWS)} | {f"bad{n}": np.zeros(ROWS) for n in range(7)}
    places, asked = raced(values)
    assert winner_of(places) == "good"
    assert {place.why for name, place in places.items() if name != "good"} == {"shown to be worse"}
    assert set(asked.values()) == {50}


def test_lower_is_better_where_the_figure_says_so_and_the_first_of_equals_wins() -> None:
    values = {"a": np.full(ROWS, 0.5), "b": np.full(ROWS, 0.25), "c": np.full(ROWS, 0.25)}
    places, _ = raced(values, "lower")
    assert (winner_of(places), places["c"].why) == ("b", "not shown to be worse")
    assert places["a"].why in ("lower half", "shown to be worse")
    assert winner_of(raced({"only": np.ones(9)})[0]) == "only"
