"""Which of several ways to take, by their paired differences and their costs.

A way is within the margin of the best if, against each other way, the upper bound of what the other gains is at most
the margin. The bounds hold together for all others with 95 % (Bonferroni), as in multiple comparisons with the best
(Hsu 1981). Of the ways within the margin, the least costly one is recommended; of those that cost about as much, the
simplest. If there is none, the rows cannot tell, and the simplest way that is not shown to be worse is named.
Nothing here knows what a way is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from tunesmith.statistics.differences import LEVEL, Difference, holm, paired
from tunesmith.statistics.measured import Measured
from tunesmith.statistics.power import MOST_ROWS, rows_to_show

MARGIN = 0.05
"""A difference in quality that is not worth a more costly way: five of a hundred answers."""

SAME_COST = 1.1
"""Costs that differ by less than this factor count as equal: they come from a few measured times."""


@dataclass(frozen=True, slots=True)
class Option:
    """A way, as the rules see it.

    Attributes:
        name: of the way.
        figure: what decides, on rows that all ways have.
        cost: in total, in any unit; the lower is preferred among ways that are as good.
    """

    name: str
    figure: Measured
    cost: float


@dataclass(frozen=True, slots=True)
class Advantage:
    """What another way gains over a way.

    Attributes:
        other: its name.
        difference: other − way, in the direction that is good.
        most: the upper bound of the difference, at the level of all comparisons together.
    """

    other: str
    difference: Difference
    most: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What the rules choose.

    Attributes:
        way: the recommended one.
        is_certain: whether it is shown to be within the margin of the best.
        best: the way with the best figure in these rows.
        not_worse: ways that are not shown to be worse than it (Holm), itself among them.
        within_margin: ways that are shown to be within the margin of the best.
        advantages: of the other ways over the recommended one.
        rows_needed: about how many rows would show the best to be within the margin, if the differences stay as they
            are; None if it is certain, or it takes more than a million.
    """

    way: str
    is_certain: bool
    best: str
    not_worse: tuple[str, ...]
    within_margin: tuple[str, ...]
    advantages: tuple[Advantage, ...]
    rows_needed: int | None

    @property
    def runner_up(self) -> str | None:
        """The best of the other ways; None if there is no other."""
        ahead = max(self.advantages, key=lambda each: each.difference.value, default=None)
        return None if ahead is None else ahead.other


def choose(options: Sequence[Option], margin: float = MARGIN) -> Choice:
    """Apply the rules.

    Args:
        options: the ways, simplest first; at least one. All figures are of the same metric.
        margin: in the figure's unit.

    Returns:
        The choice.
    """
    sign = -1.0 if options[0].figure.better == "lower" else 1.0
    best = max(options, key=lambda option: sign * option.figure.value)
    advantages = {option.name: _advantages(option, options, sign) for option in options}
    within = [option for option in options if all(each.most <= margin for each in advantages[option.name])]
    not_worse = _not_worse(best, options)
    way = _least_costly(within) if within else next(option for option in options if option.name in not_worse)
    return Choice(
        way.name,
        bool(within),
        best.name,
        not_worse,
        tuple(option.name for option in within),
        advantages[way.name],
        None if within else _rows_needed(advantages[best.name], margin),
    )


def _least_costly(options: Sequence[Option]) -> Option:
    """The first of the options that cost about the least."""
    least = min(option.cost for option in options)
    return next(option for option in options if option.cost <= SAME_COST * least)


def _advantages(option: Option, options: Sequence[Option], sign: float) -> tuple[Advantage, ...]:
    """Of all others over an option."""
    others = [other for other in options if other.name != option.name]
    found = []
    for other in others:
        difference = _signed(paired(option.figure, other.figure), sign)
        found.append(Advantage(other.name, difference, upper_bound(difference, LEVEL / len(others))))
    return tuple(found)


def _signed(difference: Difference | None, sign: float) -> Difference:
    """In the direction that is good."""
    assert difference is not None, "ways are compared on the same rows"
    if sign > 0:
        return difference
    low, high = difference.interval
    return Difference(-difference.value, (-high, -low), difference.p_value, difference.standard_error, difference.rows)


def upper_bound(difference: Difference, level: float) -> float:
    """The one-sided upper bound of a difference.

    The half-width of its 95 % interval is scaled by Student's quantiles, so that what makes the interval honest (skew,
    few rows that differ) widens the bound as well.

    Args:
        difference: as found.
        level: the chance that the true difference is beyond the bound.

    Returns:
        The bound.
    """
    freedom = max(1, difference.rows - 1)
    half = difference.interval[1] - difference.value
    error = max(difference.standard_error, half / float(stdtrit(freedom, 0.975)))
    return difference.value + float(stdtrit(freedom, 1 - level)) * error


def _not_worse(best: Option, options: Sequence[Option]) -> tuple[str, ...]:
    """The options that are not shown to be worse than the best one."""
    others = [option for option in options if option.name != best.name]
    differences = [paired(best.figure, other.figure) for other in others]
    adjusted = holm([1.0 if each is None else each.p_value for each in differences])
    shown = {other.name for other, p_value in zip(others, adjusted, strict=True) if p_value < LEVEL}
    return tuple(option.name for option in options if option.name not in shown)


def _rows_needed(advantages: Sequence[Advantage], margin: float) -> int | None:
    """Rows with which the bounds of the best option would be at most the margin."""
    level = 2 * LEVEL / max(1, len(advantages))  # one-sided
    needed = [rows_to_show(margin - each.difference.value, each.difference.deviation, level) for each in advantages]
    most = max(needed, default=0)
    return most if most <= MOST_ROWS else None
