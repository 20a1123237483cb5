"""Successive halving: candidates answer the same rows, round by round, and the worse ones drop out.

Each round doubles the rows and at least halves the candidates (Karnin et al. 2013; Jamieson & Talwalkar 2016), so that
rows go to those that may be the best. Beside the lower half, those leave that are shown to be worse than the leader: by
the paired difference on the rows so far, with Holm's correction for all candidates of the round, at a level divided by
the number of rounds, since looking again and again finds differences by chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Literal

from tunesmith.statistics.differences import LEVEL, holm, paired
from tunesmith.statistics.measured import Measured

FEWEST = 8
"""Rows of the first round, if there are as many."""

Why = Literal["shown to be worse", "lower half", "not shown to be worse", "winner"]

Measure = Callable[[Sequence[str], int, int], dict[str, Measured]]
"""(candidates, round, rows) → the figure of each on the first rows."""


@dataclass(frozen=True, slots=True)
class Place:
    """How a candidate ended.

    Attributes:
        figure: on the rows that it answered.
        round: the last one that it was in.
        why: it left: `shown to be worse` than the leader, or in the `lower half`; else it was in the last round, as the
            `winner`, or `not shown to be worse` than it.
    """

    figure: Measured
    round: int
    why: Why


def schedule(candidates: int, rows: int) -> list[int]:
    """How many rows candidates have answered after each round.

    Args:
        candidates: how many begin.
        rows: that there are.

    Returns:
        As many numbers as it takes to halve the candidates to two, each twice the last, the last one `rows`.
    """
    rounds = max(1, ceil(log2(max(candidates, 1))))
    return [max(min(FEWEST, rows), rows >> (rounds - number)) for number in range(1, rounds + 1)]


def race(names: Sequence[str], measure: Measure, rows: int) -> dict[str, Place]:
    """Find the best of some candidates.

    Args:
        names: of the candidates; of equally good ones, the first is preferred.
        measure: gives the candidates' figures, of which higher or lower is better.
        rows: the most that one answers.

    Returns:
        How each ended, by name, in the given order.
    """
    places: dict[str, Place] = {}
    left = list(names)
    steps = schedule(len(names), rows)
    for number, answered in enumerate(steps, 1):
        figures = measure(left, number, answered)
        order = _ranked(figures)
        worse = _shown_worse(figures, order, LEVEL / len(steps))
        is_last = number == len(steps) or len(order) - len(worse) == 1
        keep = len(order) if is_last else ceil(len(order) / 2)
        staying = [name for name in order if name not in worse][:keep]
        for name in left:
            why: Why = "shown to be worse" if name in worse else "lower half"
            places[name] = Place(figures[name], number, "not shown to be worse" if name in staying else why)
        left = [name for name in left if name in staying]
        if is_last:
            places[order[0]] = replace(places[order[0]], why="winner")
            break
    return {name: places[name] for name in names}


def _ranked(figures: dict[str, Measured]) -> list[str]:
    """The candidates, the best first."""
    return sorted(figures, key=lambda name: figures[name].value * (1 if figures[name].better == "lower" else -1))


def _shown_worse(figures: dict[str, Measured], order: Sequence[str], level: float) -> set[str]:
    """Those whose paired difference from the leader is shown."""
    leader, *others = order
    found = [paired(figures[name], figures[leader]) for name in others]
    p_values = holm([1.0 if difference is None else difference.p_value for difference in found])
    return {name for name, p_value in zip(others, p_values, strict=True) if p_value < level}
