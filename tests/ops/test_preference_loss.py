"""Preference losses, compared with their papers' formulas written out with numbers."""

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any, get_args

import pytest
import torch

from tunesmith.ops.preference_loss import (
    WITHOUT_REFERENCE,
    PairLossName,
    Pairs,
    bradley_terry_losses,
    kto_losses,
    pair_losses,
    plackett_luce_loss,
)

PAIR = {"pi_w": -12.0, "pi_l": -9.5, "ref_w": -14.5, "ref_l": -9.0, "n_w": 8.0, "n_l": 5.0}
"""log π and log ρ of the better (w) and the worse (l) completion, and their tokens."""


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(min(-x, 700.0)))


def log_ratio(p: dict[str, float]) -> float:
    return (p["pi_w"] - p["ref_w"]) - (p["pi_l"] - p["ref_l"])


def odds(log_p: float) -> float:
    return math.exp(log_p) / (1 - math.exp(log_p))


Formula = Callable[[dict[str, float], float, float], float]
FORMULAS: dict[str, Formula] = {
    "sigmoid": lambda p, b, e: -(1 - e) * math.log(sigma(b * log_ratio(p))) - e * math.log(sigma(-b * log_ratio(p))),
    "hinge": lambda p, b, e: max(0.0, 1 - b * log_ratio(p)),
    "ipo": lambda p, b, e: (
        ((p["pi_w"] - p["ref_w"]) / p["n_w"] - (p["pi_l"] - p["ref_l"]) / p["n_l"] - 1 / (2 * b)) ** 2
    ),
    "robust": lambda p, b, e: (
        (-(1 - e) * math.log(sigma(b * log_ratio(p))) + e * math.log(sigma(-b * log_ratio(p)))) / (1 - 2 * e)
    ),
    "exo_pair": lambda p, b, e: sum(
        sigma(s * b * log_ratio(p)) * (math.log(sigma(s * b * log_ratio(p))) - math.log(q))
        for s, q in ((1, 1 - (e or 1e-3)), (-1, e or 1e-3))
    ),
    "nca_pair": lambda p, b, e: (
        -math.log(sigma(b * (p["pi_w"] - p["ref_w"])))
        - 0.5 * math.log(sigma(-b * (p["pi_w"] - p["ref_w"])))
        - 0.5 * math.log(sigma(-b * (p["pi_l"] - p["ref_l"])))
    ),
    "sppo_hard": lambda p, b, e: (p["pi_w"] - p["ref_w"] - 0.5 / b) ** 2 + (p["pi_l"] - p["ref_l"] + 0.5 / b) ** 2,
    "apo_zero": lambda p, b, e: 1 - sigma(b * (p["pi_w"] - p["ref_w"])) + sigma(b * (p["pi_l"] - p["ref_l"])),
    "apo_down": lambda p, b, e: sigma(b * (p["pi_w"] - p["ref_w"])) + 1 - sigma(b * log_ratio(p)),
    "discopop": lambda p, b, e: (
        (1 - sigma(b * log_ratio(p) / 0.05)) * -math.log(sigma(b * log_ratio(p)))
        + sigma(b * log_ratio(p) / 0.05) * math.exp(-b * log_ratio(p))
    ),
    "simpo": lambda p, b, e: -math.log(sigma(b * (p["pi_w"] / p["n_w"] - p["pi_l"] / p["n_l"]) - 0.7)),
    "orpo": lambda p, b, e: -b * math.log(sigma(math.log(odds(p["pi_w"] / p["n_w"]) / odds(p["pi_l"] / p["n_l"])))),
    "cpo": lambda p, b, e: -math.log(sigma(b * (p["pi_w"] - p["pi_l"]))),
}


def pairs_of(values: dict[str, float], **changed: Any) -> Pairs:
    tensors = [
        torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in {**values, **changed}.values()
    ]
    return Pairs(*tensors)


def test_every_loss_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(get_args(PairLossName))


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(("beta", "smoothing"), [(0.3, 0.0), (1.7, 0.15)])
def test_a_loss_is_its_formula(name: PairLossName, beta: float, smoothing: float) -> None:
    if smoothing and name in ("simpo", "cpo"):
        smoothing = 0.0
    for values in (PAIR, {**PAIR, "pi_l": -19.0}, {**PAIR, "pi_w": -40.0}):
        loss = pair_losses(name, pairs_of(values), beta, smoothing, target_margin=0.7)
        assert loss.item() == pytest.approx(FORMULAS[name](values, beta, smoothing), rel=1e-9)


@pytest.mark.parametrize("name", ["simpo", "cpo"])
def test_smoothing_mixes_in_the_loss_of_the_swapped_pair(name: PairLossName) -> None:
    swapped = {**PAIR, "pi_w": PAIR["pi_l"], "pi_l": PAIR["pi_w"], "n_w": PAIR["n_l"], "n_l": PAIR["n_w"]}
    one, other = (pair_losses(name, pairs_of(values), 0.3).item() for values in (PAIR, swapped))
    assert pair_losses(name, pairs_of(PAIR), 0.3, 0.2).item() == pytest.approx(0.8 * one + 0.2 * other)


@pytest.mark.parametrize("name", FORMULAS)
def test_only_losses_without_a_reference_ignore_it(name: PairLossName) -> None:
    losses = [pair_losses(name, pairs_of(PAIR, ref_w=value), 0.3).item() for value in (-14.5, -11.0)]
    assert (losses[0] == losses[1]) == (name in WITHOUT_REFERENCE)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_step_down_the_loss_raises_the_better_one_above_the_worse_one(name: PairLossName) -> None:
    pairs = pairs_of(PAIR)
    pair_losses(name, pairs, 0.3).sum().backward()
    assert pairs.better.grad is not None
    assert pairs.worse.grad is not None
    assert pairs.better.grad.item() < pairs.worse.grad.item()


def test_kto_is_its_formula_and_its_baseline_has_no_gradient() -> None:
    ratios = torch.tensor([0.5, -0.3, 1.2], dtype=torch.float64)
    is_good = torch.tensor([True, False, True])
    losses = kto_losses(ratios, is_good, torch.tensor(0.4, dtype=torch.float64), 0.2, (1.5, 0.5))
    expected = [
        1.5 * (1 - sigma(0.2 * (0.5 - 0.4))),
        0.5 * (1 - sigma(0.2 * (0.4 + 0.3))),
        1.5 * (1 - sigma(0.2 * 0.8)),
    ]
    assert losses.tolist() == pytest.approx(expected)


def test_plackett_luce_is_the_probability_of_the_order() -> None:
    rewards = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    total = 0.0
    for order in permutations(range(3)):
        scores = [0.0] * 3
        for place, item in enumerate(order):
            scores[item] = -float(place)
        left, probability = list(order), 1.0
        while left:
            weights = [math.exp(rewards[item]) for item in left]
            probability *= weights[0] / sum(weights)
            left.pop(0)
        assert plackett_luce_loss(rewards, scores).item() == pytest.approx(-math.log(probability))
        total += probability
    assert total == pytest.approx(1.0)


def test_two_completions_are_bradley_terry_and_ties_share_a_denominator() -> None:
    rewards = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    assert plackett_luce_loss(rewards[:2], [1.0, 0.0]).item() == pytest.approx(-math.log(sigma(1.3)))
    e = [math.exp(value) for value in rewards.tolist()]
    assert plackett_luce_loss(rewards, [1.0, 1.0, 0.0]).item() == pytest.approx(
        -math.log(e[0] / sum(e)) - math.log(e[1] / sum(e))
    )
    assert plackett_luce_loss(rewards, [1.0, 0.0, 0.0]).item() == pytest.approx(-math.log(e[0] / sum(e)))


def test_bradley_terry_with_margins_and_ties() -> None:
    difference = torch.tensor([1.5, 1.5, -0.4], dtype=torch.float64)
    margins, ties = torch.tensor([0.0, 0.6, 0.0]), torch.tensor([False, False, True])
    expected = [-math.log(sigma(1.5)), -math.log(sigma(0.9)), -0.5 * math.log(sigma(-0.4)) - 0.5 * math.log(sigma(0.4))]
    assert bradley_terry_losses(difference, ties, margins).tolist() == pytest.approx(expected)
