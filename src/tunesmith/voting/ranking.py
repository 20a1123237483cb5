"""`tunesmith rank`: what votes say about the models, and how far the votes can be trusted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import UserError
from tunesmith.statistics.agreement import agreement
from tunesmith.statistics.bradley_terry import Strengths, fit
from tunesmith.statistics.differences import holm
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.voting.votes import Contender, Vote, read_votes

POINTS = 400 / log(10)
"""Elo points of a strength of 1: a model with 400 more is preferred ten times as often (Elo 1978)."""

LEVEL = 0.05
"""The chance of calling any two models different that are not, in a group of models."""

OPINIONS = (0.0, 0.5, 1.0)
"""The second answer is better, neither, the first."""


def rank(files: str | Path | Sequence[str | Path]) -> dict[str, Any]:
    """Rank models by people's votes.

    Strengths are those of Bradley & Terry (1952), with ties by Davidson (1970), in Elo points around the mean of the
    models that votes connect; votes on the same question are not taken for independent. Models are the same if their
    hashes are, or their names where there is no hash.

    Args:
        files: of `vote`, or several.

    Returns:
        `votes`, `ties`; `repeated`: earlier votes of somebody on what they voted on again, which do not count;
        `groups`: of models that votes connect, each with `models`, the strongest first (name, SHA-256, wins, ties and
        losses, `points` with their 95 % `interval`, and `ranks`, the best and the worst place that the differences
        shown allow, by Holm's correction within the group) and `pairs`, the wins of each two models;
        `voters`: their votes, and how often they chose the answer that was shown first; `shown_first`: the same of all;
        `agreement`: between voters, None if no two voted on the same answers: the pairs that they share,
        Krippendorff's `alpha`, and the `share` of equal votes. Figures have a `value`, a 95 % `interval` and `rows`.

    Raises:
        UserError: a file cannot be read or has rows that are no votes, or there are no votes.
    """
    every = read_votes([files] if isinstance(files, str | Path) else files)
    last = {(vote.voter, vote.content, _models(vote)): vote for vote in every}
    votes = list(last.values())
    if not votes:
        raise UserError("There are no votes. Name files that tunesmith vote wrote.")
    names = _names(votes)
    return {
        "votes": len(votes),
        "ties": sum(vote.tie for vote in votes),
        "repeated": len(every) - len(votes),
        "groups": [_group(group, votes, names) for group in _connected(votes)],
        "voters": _voters(votes),
        "shown_first": _figure(_shown_first(votes)),
        "agreement": _agreement(votes),
    }


def _key(contender: Contender) -> str:
    return contender.sha256 or contender.name


def _models(vote: Vote) -> tuple[str, str]:
    """Both models, in an order that does not depend on the vote."""
    one, two = sorted([_key(vote.chosen_by), _key(vote.rejected_by)])
    return one, two


def _names(votes: Sequence[Vote]) -> dict[str, Contender]:
    """How each model is shown: by its first name, with a part of its hash where others have the same."""
    found: dict[str, Contender] = {}
    for vote in votes:
        for each in (vote.chosen_by, vote.rejected_by):
            found.setdefault(_key(each), each)
    taken = Counter(each.name for each in found.values())
    return {
        key: Contender(f"{each.name} ({(each.sha256 or 'served')[:6]})", each.sha256) if taken[each.name] > 1 else each
        for key, each in found.items()
    }


def _connected(votes: Sequence[Vote]) -> list[list[str]]:
    """The models that votes connect, the largest group first."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    models = sorted({key for vote in votes for key in _models(vote)})
    index = {key: number for number, key in enumerate(models)}
    edges = np.array([[index[key] for key in _models(vote)] for vote in votes]).T
    graph = coo_matrix((np.ones(len(votes)), edges), (len(models), len(models)))
    count, labels = connected_components(graph, directed=False)
    groups = [[key for key, label in zip(models, labels, strict=True) if label == number] for number in range(count)]
    return sorted(groups, key=lambda group: -len(group))


def _group(group: Sequence[str], votes: Sequence[Vote], names: Mapping[str, Contender]) -> dict[str, Any]:
    """The ranking of models that votes connect."""
    index = {key: number for number, key in enumerate(group)}
    ours = [vote for vote in votes if _key(vote.chosen_by) in index]
    chosen = np.array([index[_key(vote.chosen_by)] for vote in ours])
    rejected = np.array([index[_key(vote.rejected_by)] for vote in ours])
    ties = np.array([vote.tie for vote in ours])
    questions = np.unique([vote.question for vote in ours], return_inverse=True)[1]
    wins = np.zeros((len(group), len(group)), np.int64)
    np.add.at(wins, (chosen[~ties], rejected[~ties]), 1)
    equal = np.zeros_like(wins)
    np.add.at(equal, (np.r_[chosen[ties], rejected[ties]], np.r_[rejected[ties], chosen[ties]]), 1)
    strengths = fit(chosen, rejected, np.where(ties, 2, 0), questions, len(group))
    best, worst = _places(strengths, len(group))
    rows = []
    for number, key in enumerate(group):
        value, interval, _ = strengths.estimate(np.eye(len(group))[number] - 1 / len(group))
        rows.append(
            {
                "name": names[key].name,
                "sha256": names[key].sha256,
                "votes": int((wins + wins.T + equal)[number].sum()),
                "wins": int(wins[number].sum()),
                "ties": int(equal[number].sum()),
                "losses": int(wins[:, number].sum()),
                "points": POINTS * value,
                "interval": [POINTS * end for end in interval],
                "ranks": [int(best[number]), int(worst[number])],
            }
        )
    pairs = [
        {
            "models": [names[group[one]].name, names[group[two]].name],
            "wins": [int(wins[one, two]), int(wins[two, one])],
            "ties": int(equal[one, two]),
        }
        for one, two in combinations(range(len(group)), 2)
        if wins[one, two] + wins[two, one] + equal[one, two]
    ]
    return {"models": sorted(rows, key=lambda row: -float(row["points"])), "pairs": pairs, "votes": len(ours)}


def _places(strengths: Strengths, models: int) -> tuple[Any, Any]:
    """The best and the worst place of each model (models,) that the differences shown allow."""
    pairs = list(combinations(range(models), 2))
    unit = np.eye(models)
    found = [strengths.estimate(unit[one] - unit[two]) for one, two in pairs]
    shown = [p < LEVEL for p in holm([p for *_, p in found])]
    above, below = np.zeros(models, np.int64), np.zeros(models, np.int64)
    for (one, two), (value, *_), is_shown in zip(pairs, found, shown, strict=True):
        if is_shown:
            better, worse = (one, two) if value > 0 else (two, one)
            above[worse] += 1
            below[better] += 1
    return 1 + above, models - below


def _voters(votes: Sequence[Vote]) -> dict[str, dict[str, Any]]:
    """What each voter did, the busiest first."""
    found = Counter(vote.voter for vote in votes)
    return {
        voter: {"votes": count, "shown_first": _figure(_shown_first([each for each in votes if each.voter == voter]))}
        for voter, count in found.most_common()
    }


def _shown_first(votes: Sequence[Vote]) -> Measured | None:
    """How often the answer was chosen that was shown first; None if all votes are ties."""
    decided = [vote for vote in votes if not vote.tie]
    if not decided:
        return None
    values = [float(vote.shown_first == "chosen") for vote in decided]
    units = [f"{vote.voter}: {vote.content}" for vote in decided]
    return mean_of(values, units, "chose the first shown", "of votes that are no ties", "neither")


def _agreement(votes: Sequence[Vote]) -> dict[str, Any] | None:
    """Between voters who voted on the same two answers."""
    opinions: dict[tuple[str, tuple[str, str]], list[float]] = {}
    for vote in votes:
        models = _models(vote)
        value = 0.5 if vote.tie else float(_key(vote.chosen_by) == models[0])
        opinions.setdefault((vote.content, models), []).append(value)
    shared = {f"{content} {models}": values for (content, models), values in opinions.items() if len(values) > 1}
    if not shared:
        return None
    counts = np.array([[values.count(opinion) for opinion in OPINIONS] for values in shared.values()], np.float64)
    found = agreement(counts, OPINIONS, list(shared))
    return {"pairs": len(shared), **{name: _figure(each) for name, each in found.items()}}


def _figure(measured: Measured | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    value, interval = measured.estimate
    return {"value": value, "interval": list(interval), "rows": len(measured.units)}
