"""The rules of `recommendation` on ranges from published experiments, in place of bounds from the user's rows.

Behind: every study that measured both found another way more than the margin ahead. Within the margin of the best: no
study found another way more than the margin ahead; where no study measured both, their gains over the plain model are
compared, the other's highest with the own lowest. Nothing here knows what a way is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.comparing.priors import Range, Study, differences, papers_on

PLAIN = "plain"
"""The way that gains are counted from."""

FEWEST_PAPERS = 2
"""The figures of a single paper are of one group's models and tasks: too little to call anything clear."""


@dataclass(frozen=True, slots=True)
class PriorChoice:
    """What the published figures say.

    Attributes:
        way: to start with: the least costly of `pool`.
        pool: the ways within the margin; if there are none, those with figures that are not behind; if no way has
            figures, the one of least effort.
        is_within: whether `pool` is of ways within the margin.
        is_clear: whether it is, at least two papers measured the way, and every other way has figures.
        behind: the ways that are behind another one: by name, the one that is ahead the most, and how much.
        unknown: ways without a figure.
        gains: over the plain model, by way; None if no study measured both.
    """

    way: str
    pool: tuple[str, ...]
    is_within: bool
    is_clear: bool
    behind: Mapping[str, tuple[str, Range]]
    unknown: tuple[str, ...]
    gains: Mapping[str, Range | None]


def choose_by_priors(
    ways: Sequence[str], studies: Sequence[Study], costs: Mapping[str, float], margin: float
) -> PriorChoice:
    """Apply the rules.

    Args:
        ways: that are possible, the least effort first; at least one.
        studies: of the same kind of change.
        costs: by way, in any unit; a way that is missing comes after the others. Ties: the earlier way.
        margin: in points.

    Returns:
        The choice.
    """
    known = [way for way in ways if papers_on(way, studies)]
    unknown = tuple(way for way in ways if way not in known)
    behind = _behind(known, studies, margin)
    within = [way for way in known if all(_most(way, other, studies) <= margin for other in known if other != way)]
    pool = within or [way for way in known if way not in behind] or [ways[0]]
    way = min(pool, key=lambda name: costs.get(name, float("inf")))
    clear = bool(within) and not unknown and len(papers_on(way, studies)) >= FEWEST_PAPERS
    gains = {name: differences(PLAIN, name, studies) for name in ways}
    return PriorChoice(way, tuple(pool), bool(within), clear, behind, unknown, gains)


def _behind(ways: Sequence[str], studies: Sequence[Study], margin: float) -> dict[str, tuple[str, Range]]:
    """The ways that another one is always more than the margin ahead of."""
    found: dict[str, tuple[str, Range]] = {}
    for way in ways:
        ahead = [(other, differences(way, other, studies)) for other in ways if other != way]
        shown = [(other, range_) for other, range_ in ahead if range_ is not None and range_[0] > margin]
        if shown:
            found[way] = max(shown, key=lambda pair: pair[1][0])
    return found


def _most(way: str, other: str, studies: Sequence[Study]) -> float:
    """The most that another way may gain over a way; infinite if nothing is known."""
    direct = differences(way, other, studies)
    if direct is not None:
        return direct[1]
    own, theirs = differences(PLAIN, way, studies), differences(PLAIN, other, studies)
    return float("inf") if own is None or theirs is None else theirs[1] - own[0]
