"""Which way is recommended: the best within a margin, the least costly of equals, or none if the rows cannot tell."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri

from tunesmith.comparing.recommendation import MARGIN, Choice, Option, choose
from tunesmith.statistics.measured import Better, mean_of

NAMES = ("plain", "prompt", "few_shot", "retrieval", "tuned")


def options(
    scores: NDArray[np.float64], costs: Sequence[float] | None = None, better: Better = "higher"
) -> list[Option]:
    """Ways with the given scores (ways, rows), each costlier than the one before unless it is said."""
    units = [f"row {row}" for row in range(scores.shape[1])]
    costs = range(len(scores)) if costs is None else costs
    return [
        Option(name, mean_of(own, units, "right", "answers that are right", better), cost)
        for name, own, cost in zip(NAMES, scores, costs, strict=False)
    ]


def hits(qualities: Sequence[float], rows: int, seed: int, correlation: float = 0.5) -> NDArray[np.float64]:
    """(ways, rows) of 0 and 1: each way is right with its quality, on similar rows as the others."""
    draw = np.random.default_rng(seed)
    shared = draw.standard_normal(rows) * correlation**0.5
    own = draw.standard_normal((len(qualities), rows)) * (1 - correlation) ** 0.5
    return ((shared + own) < ndtri(np.asarray(qualities))[:, None]).astype(np.float64)


def test_a_way_that_is_clearly_better_is_recommended_and_certain() -> None:
    choice = choose(options(hits([0.1, 0.2, 0.3, 0.3, 0.8], 200, 0)))
    assert (choice.way, choice.is_certain, choice.rows_needed) == ("tuned", True, None)
    assert choice.not_worse == ("tuned",)


def test_of_ways_that_are_equally_good_the_least_costly_is_recommended() -> None:
    same = hits([0.6], 400, 0).repeat(3, axis=0)
    assert choose(options(same, costs=[5.0, 1.0, 9.0])).way == "prompt"
    assert choose(options(same, costs=[1.0, 1.0, 1.0])).way == "plain"  # the simplest of equals


def test_a_costlier_way_is_not_worth_less_than_the_margin() -> None:
    scores = hits([0.5], 1000, 0).repeat(2, axis=0)
    scores[1, np.flatnonzero(scores[1] == 0)[:20]] = 1  # 2 points better, shown beyond doubt
    choice = choose(options(scores))
    assert (choice.way, choice.best, choice.is_certain) == ("plain", "prompt", True)
    assert choose(options(scores), margin=0.0).way == "prompt"


def test_too_few_rows_are_said_to_be_too_few_and_how_many_would_do() -> None:
    few = choose(options(hits([0.5, 0.5, 0.55, 0.5, 0.6], 25, 1)))
    assert not few.is_certain
    assert few.rows_needed is not None
    assert few.rows_needed > 25
    assert few.way == "plain"  # nothing shows that effort pays


def test_the_named_number_of_rows_decides_in_most_draws() -> None:
    qualities = [0.35, 0.4, 0.5]
    needed = choose(options(hits(qualities, 60, 3))).rows_needed
    assert needed is not None
    certain = [choose(options(hits(qualities, needed, seed))).is_certain for seed in range(40)]
    assert np.mean(certain) > 0.7


def test_a_figure_whose_low_values_are_good_is_turned_around() -> None:
    scores = np.random.default_rng(0).random((3, 200)) + np.array([[2.0], [0.0], [1.0]])
    choice = choose(options(scores, better="lower"))
    assert (choice.way, choice.is_certain) == ("prompt", True)
    assert choice.runner_up == "few_shot"


def test_one_way_alone_is_recommended() -> None:
    choice = choose(options(hits([0.5], 30, 0)))
    assert (choice.way, choice.is_certain, choice.runner_up) == ("plain", True, None)


@pytest.mark.parametrize(
    ("qualities", "rows"),
    [([0.2, 0.4, 0.5, 0.6, 0.7], 100), ([0.5, 0.56, 0.5, 0.56, 0.5], 400)],
    ids=["a clear order", "just beyond the margin"],
)
def test_what_is_certain_is_within_the_margin_of_the_best_in_nearly_all_draws(
    qualities: list[float], rows: int
) -> None:
    choices = [choose(options(hits(qualities, rows, seed))) for seed in range(120)]
    wrong = [is_wrong(choice, qualities) for choice in choices]
    assert np.mean(wrong) <= 0.05 + 2 * (0.05 * 0.95 / len(choices)) ** 0.5


def is_wrong(choice: Choice, qualities: Sequence[float]) -> bool:
    """Whether the rules are certain of a way that is more than the margin below the best."""
    gap = max(qualities) - qualities[NAMES.index(choice.way)]
    return choice.is_certain and gap > MARGIN + 1e-9
