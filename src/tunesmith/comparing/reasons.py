"""The recommendation in words: what was chosen, why, and what would change it."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.comparing.costs import BreakEven, Cost, Prices
from tunesmith.comparing.recommendation import Choice
from tunesmith.comparing.ways import Way
from tunesmith.report.formatting import duration
from tunesmith.statistics.measured import Measured

Quality = Mapping[str, Measured]
"""What decides, by way."""


def because(
    choice: Choice, ways: Mapping[str, Way], quality: Quality, costs: Mapping[str, Cost], prices: Prices, margin: float
) -> list[str]:
    """Why a way is recommended, in sentences.

    Args:
        choice: by the rules.
        ways: that may be recommended.
        quality: by way.
        costs: by way.
        prices: of the machine and of rows.
        margin: of the choice.

    Returns:
        The sentences.
    """
    figure = quality[choice.way]
    value, (low, high) = figure.estimate
    rows = len(figure.units)
    found = [
        f"{choice.way} ({ways[choice.way].title}) reaches {shown(value, figure)} "
        f"[{shown(low, figure)}, {shown(high, figure)}] of {figure.title} on {rows:,} held-out rows."
    ]
    if choice.best != choice.way:
        best = quality[choice.best]
        found.append(f"The best in these rows is {choice.best} with {shown(best.value, best)}.")
    worse = [name for name in quality if name not in choice.not_worse]
    if worse:
        found.append(f"Shown to be worse than {choice.best}: {', '.join(worse)} (p < 0.05, Holm).")
    if choice.is_certain:
        found += _certain(choice, costs, prices, margin, figure)
    else:
        found += _uncertain(choice, margin, figure)
    return found


def _certain(choice: Choice, costs: Mapping[str, Cost], prices: Prices, margin: float, figure: Measured) -> list[str]:
    found = []
    most = max((each.most for each in choice.advantages), default=None)
    if most is not None:
        gains = max(most, 0.0)
        found.append(
            f"No other way gains more than {shown(gains, figure)} over it, with 95 % for all comparisons together; "
            f"{shown(margin, figure)} would count."
        )
    equal = [name for name in choice.within_margin if name != choice.way]
    if equal:
        total = money(costs[choice.way].total(prices), prices)
        found.append(
            f"{', '.join(equal)} {'are' if len(equal) > 1 else 'is'} as good within that margin. Of these, "
            f"{choice.way} costs least: {total} for {prices.requests:,} requests."
        )
    return found


def _uncertain(choice: Choice, margin: float, figure: Measured) -> list[str]:
    tied = [name for name in choice.not_worse if name != choice.way]
    found = [
        f"The data cannot tell whether another way gains more than {shown(margin, figure)}: "
        f"{', '.join(tied) or 'another'} may."
    ]
    found.append(f"{choice.way} is the simplest of the ways that are not shown to be worse.")
    if choice.rows_needed is not None:
        more = max(1, choice.rows_needed - len(figure.units))
        found.append(f"Label about {more:,} more held-out rows to decide it.")
    else:
        found.append("More than a million held-out rows would be needed to decide it: the ways are as good.")
    return found


def would_change(
    choice: Choice,
    costs: Mapping[str, Cost],
    prices: Prices,
    breaks: Sequence[BreakEven],
    refused: Mapping[str, str],
    best_of_needs: Mapping[str, str],
) -> list[str]:
    """What would lead to another recommendation.

    Args:
        choice: by the rules.
        costs: by way.
        prices: of the machine and of rows.
        breaks: from how many requests on one way costs less than another.
        refused: ways beyond a limit, and why.
        best_of_needs: the recommended way among rows of one need, by need.

    Returns:
        Sentences.
    """
    found = []
    for each in breaks:
        if each.requests is None or not {each.way, each.other} <= set(choice.within_margin):
            continue
        if each.other == choice.way:
            found.append(f"From {each.requests:,.0f} requests on, {each.way} costs less.")
        elif each.way == choice.way:
            found.append(f"Below {each.requests:,.0f} requests, {each.other} costs less.")
    change = costs[choice.way].change_seconds
    faster = [
        (name, cost.change_seconds)
        for name, cost in costs.items()
        if name in choice.not_worse and cost.change_seconds is not None and change is not None
        and cost.change_seconds < change / 2
    ]  # fmt: skip
    if change is not None and faster:
        name, seconds = min(faster, key=lambda pair: pair[1])
        found.append(
            f"If facts change often: {name} knows a changed one after {duration(seconds)}, {choice.way} after "
            f"{duration(change)}."
        )
    found += [f"{name} is out of the question: {why}." for name, why in refused.items()]
    found += [
        f"If all rows were like those that need {need}, it would be {way}."
        for need, way in best_of_needs.items()
        if way != choice.way
    ]
    return found


def shown(value: float, figure: Measured) -> str:
    """A value of a figure, as a person reads it.

    Args:
        value: in the figure's unit.
        figure: whose value it is.

    Returns:
        Percent for shares.
    """
    return f"{100 * value:.1f} %" if figure.unit == "share" else f"{value:.3g}"


def money(value: float, prices: Prices) -> str:
    """A cost: a price, or seconds of this machine.

    Args:
        value: in the unit of `Cost.total`.
        prices: which say what the unit is.
    """
    return f"{value:,.2f}" if prices.are_stated else f"{duration(value)} of this machine"


def described(choice: Choice, reasons: Sequence[str], changes: Sequence[str]) -> dict[str, Any]:
    """A recommendation as plain values.

    Args:
        choice: by the rules.
        reasons: why.
        changes: what would change it.

    Returns:
        `way`, `because`, `certain`, `runner_up`, `would_change`, `best`, `not_worse`, `within_margin`, `rows_needed`.
    """
    return {
        "way": choice.way,
        "because": list(reasons),
        "certain": choice.is_certain,
        "runner_up": choice.runner_up,
        "would_change": list(changes),
        "best": choice.best,
        "not_worse": list(choice.not_worse),
        "within_margin": list(choice.within_margin),
        "rows_needed": choice.rows_needed,
    }
