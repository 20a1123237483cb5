"""The advice in words: why a way comes first, and what would change that."""

from collections.abc import Mapping, Sequence

from tunesmith.comparing.costs import Cost, Prices, break_evens
from tunesmith.comparing.prior_choice import PriorChoice
from tunesmith.comparing.priors import Range, Study, papers_on
from tunesmith.comparing.reasons import money
from tunesmith.comparing.ways import WAYS


def because(
    choice: PriorChoice | None, studies: Sequence[Study], costs: Mapping[str, Cost], prices: Prices, margin: float
) -> list[str]:
    """Why a way comes first, in sentences.

    Args:
        choice: by the rules; None if no way is possible.
        studies: of the kind of change.
        costs: by way; empty if they are not known.
        prices: of the device.
        margin: in points.

    Returns:
        The sentences.
    """
    if choice is None:
        return ["No way is possible within these limits."]
    found = [_gain(choice, studies)]
    if choice.is_within and len(choice.gains) > len(choice.unknown) + 1:
        found.append(f"No experiment found another way more than {margin:g} points ahead of it.")
    for way, (other, range_) in choice.behind.items():
        found.append(f"{way} is behind {other} in the experiments: {other} gains {_points(range_)} points over it.")
    if len(choice.pool) > 1:
        which = f"are within {margin:g} points of the best" if choice.is_within else "are not behind"
        found.append(f"{', '.join(choice.pool)} {which}. {_cheapest(choice.way, costs, prices)}")
    if choice.unknown:
        found.append(f"No published figure that we could check for: {', '.join(choice.unknown)}.")
    if len(papers_on(choice.way, studies)) == 1:
        found.append(f"Only one paper measured {choice.way}: its models and tasks are not yours.")
    return found


def _cheapest(way: str, costs: Mapping[str, Cost], prices: Prices) -> str:
    """That a way costs least, or takes the least effort if costs are not known."""
    if way not in costs:
        return f"Of these, {way} takes the least effort."
    total = money(costs[way].total(prices), prices) + (" US dollars" if prices.are_stated else "")
    return f"Of these, {way} costs least: about {total} for {prices.requests:,} requests."


def _gain(choice: PriorChoice, studies: Sequence[Study]) -> str:
    """What the first way gained, and by whom that was found."""
    way, gain = f"{choice.way} ({WAYS[choice.way].title})", choice.gains.get(choice.way)
    papers = "; ".join(papers_on(choice.way, studies))
    if gain is not None:
        return f"{way} gained {_points(gain)} points over the plain model in published experiments ({papers})."
    if papers:
        return f"{way} was the best of the ways measured together in published experiments ({papers})."
    return f"{way} takes the least effort, and no published figure that we could check speaks for another way."


def would_change(
    choice: PriorChoice | None, left_out: Mapping[str, str], costs: Mapping[str, Cost], prices: Prices
) -> list[str]:
    """What would lead to other advice, in sentences.

    Args:
        choice: by the rules; None if no way is possible.
        left_out: why ways are not possible.
        costs: by way; empty if they are not known.
        prices: of the device, and the number of requests.

    Returns:
        The sentences.
    """
    by_reason: dict[str, list[str]] = {}
    for way, reason in left_out.items():
        by_reason.setdefault(reason, []).append(way)
    found = [f"{', '.join(ways)}: left out, because {reason}." for reason, ways in by_reason.items()]
    if choice is None:
        return [*found, "A smaller base, a faster device or a longer latency would allow some."]
    rivals = [(name, cost) for name, cost in costs.items() if name in choice.pool]
    for each in break_evens(rivals, prices):
        if each.requests is not None and choice.way == each.other:
            found.append(f"From about {each.requests:,.0f} requests on, {each.way} would cost less.")
        elif each.requests is not None and choice.way == each.way:
            found.append(f"Below about {each.requests:,.0f} requests, {each.other} would cost less.")
    return [*found, "The comparison on your own rows replaces all of this."]


def _points(range_: Range) -> str:
    """A range of points, such as `+2.3 to +10.7`."""
    low, high = (f"{value:+.1f}".replace("-", "−") for value in range_)
    return low if low == high else f"{low} to {high}"
