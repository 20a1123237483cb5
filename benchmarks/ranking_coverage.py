"""Do the intervals of `tunesmith rank` hold the truth, where the truth is known?

    python benchmarks/ranking_coverage.py [--draws 1000]           # about a minute of one core

Models with known strengths are voted on by the model that `rank` fits (Bradley & Terry 1952, with ties by Davidson
1970). Each question is voted on by every voter for each two models. Votes on the same answers depend on each other:
with a probability, a voter says what is the general opinion of these answers, and else gives a vote of their own; the
share of each outcome stays the model's. Counted are how often the 95 % interval of a model's strength, and of the
difference of two, holds the true one; and, of models that are equal, how often `rank` shows any difference at all.
Writes results/ranking_coverage.{json,md}.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stored_result import store

from tunesmith.statistics.bradley_terry import Ints, Strengths, fit
from tunesmith.statistics.differences import holm
from tunesmith.statistics.intervals import wilson
from tunesmith.voting.ranking import LEVEL, POINTS

RESULTS = Path(__file__).parent / "results" / "ranking_coverage.json"
TIE = 0.5
"""ν: of two equal models, one vote in five is a tie."""

SPREAD = 0.7
"""Between the strongest and the weakest model: the strongest wins two of three decided votes."""


@dataclass(frozen=True)
class Setting:
    """What is drawn.

    Attributes:
        models: how many.
        questions: that are voted on.
        voters: each votes on every question.
        copied: the probability that a vote is the general opinion of the answers.
    """

    models: int
    questions: int
    voters: int
    copied: float


SETTINGS = [
    Setting(models, questions, voters, copied)
    for models, questions in ((2, 20), (2, 50), (2, 200), (4, 20), (4, 50), (4, 200))
    for voters, copied in ((1, 0.0), (3, 0.0), (3, 0.6))
]


def votes_of(
    setting: Setting, strengths: NDArray[np.float64], draw: np.random.Generator
) -> tuple[Ints, Ints, Ints, Ints]:
    """First and second model, outcome and question of each vote, as `fit` takes them."""
    pairs = np.array(list(combinations(range(setting.models), 2)))
    questions, number, _ = np.meshgrid(
        np.arange(setting.questions), np.arange(len(pairs)), np.arange(setting.voters), indexing="ij"
    )
    one, two = np.exp(strengths[pairs[:, 0]]), np.exp(strengths[pairs[:, 1]])
    weights = np.stack([one, two, TIE * np.sqrt(one * two)], 1)
    edges = np.cumsum(weights / weights.sum(1, keepdims=True), 1)[:, :2]  # (pairs, 2)

    def outcomes(uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = (uniform[..., None] > edges[number]).sum(-1)
        return found

    general = draw.random((setting.questions, len(pairs), 1))
    own = draw.random(questions.shape)
    copies = draw.random(questions.shape) < setting.copied
    each = outcomes(np.where(copies, general, own))
    first, second = pairs[number].transpose(3, 0, 1, 2)
    return first.ravel(), second.ravel(), each.ravel(), questions.ravel()


def differences(found: Strengths, models: int) -> list[tuple[float, tuple[float, float], float]]:
    """Of each two models: the value, its interval and its p-value."""
    unit = np.eye(models)
    return [found.estimate(unit[one] - unit[two]) for one, two in combinations(range(models), 2)]


def measured(setting: Setting, draws: int) -> dict[str, Any]:
    """The shares of draws in which the intervals hold the truth, and in which equal models are called different."""
    draw = np.random.default_rng(0)
    true = np.linspace(SPREAD / 2, -SPREAD / 2, setting.models)
    equal = np.zeros(setting.models)
    held: list[bool] = []
    held_of_pairs: list[bool] = []
    halves: list[float] = []
    called = 0
    for _ in range(draws):
        found = fit(*votes_of(setting, true, draw), setting.models)
        _, (low, high), _ = found.estimate(np.eye(setting.models)[0] - 1 / setting.models)
        held.append(bool(low <= true[0] <= high))
        halves.append(POINTS * (high - low) / 2)
        _, (low, high), _ = differences(found, setting.models)[0]
        held_of_pairs.append(bool(low <= true[0] - true[1] <= high))
        same = fit(*votes_of(setting, equal, draw), setting.models)
        called += min(holm([p for *_, p in differences(same, setting.models)])) < LEVEL
    return {
        **vars(setting),
        "draws": draws,
        "strength": mean(held),
        "difference": mean(held_of_pairs),
        "half_width": median(halves),
        "called_different": called / draws,
    }


def table(found: dict[str, Any]) -> str:
    """The results as a page for the docs."""
    lines = [
        f"{found['draws']:,} draws each, 95 % intervals of the shares; {found['date']}. The strongest model is "
        f"{POINTS * SPREAD:.0f} Elo points above the weakest. Dependent: six votes in ten are the general opinion.",
        "",
        "| models | questions | voters | votes on the same answers | holds a strength | holds a difference "
        "| ± points | equal models called different |",
        "|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        kind = "" if row["voters"] == 1 else "dependent" if row["copied"] else "independent"
        shares = [_share(row[key], row["draws"]) for key in ("strength", "difference", "called_different")]
        lines.append(
            f"| {row['models']} | {row['questions']} | {row['voters']} | {kind} | {shares[0]} | {shares[1]} | "
            f"{row['half_width']:.0f} | {shares[2]} |"
        )
    return "\n".join(lines) + "\n"


def _share(value: float, draws: int) -> str:
    low, high = wilson(value, draws)
    return f"{value:.1%} ({low:.1%}–{high:.1%})"


def run(draws: int, settings: Sequence[Setting] = SETTINGS) -> dict[str, Any]:
    """All settings.

    Args:
        draws: of each.
        settings: what is drawn.
    """
    rows = [measured(setting, draws) for setting in settings]
    return {"date": date.today().isoformat(), "draws": draws, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=1000)
    found = run(parser.parse_args().draws)
    store(RESULTS, found, table(found))


if __name__ == "__main__":
    main()
