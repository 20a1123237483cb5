"""Policy gradients against their papers' formulas, written out completion by completion, in float64."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tunesmith.ops.policy_loss import (
    Advantage,
    advantages,
    clipped_surrogate,
    dead_share,
    gae,
    k3,
    martingale_bound,
    suffix_sums,
    token_weights,
    value_losses,
    whitened,
)

REWARDS = [[1.0, 0.0, 0.0, 0.5], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 3.0, 0.0]]
LENGTHS = [3, 1, 4]


def tokens(seed: int, count: int = sum(LENGTHS)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64)


def completions(values: Tensor) -> list[list[float]]:
    return [part.tolist() for part in torch.split(values, LENGTHS)]


def by_group(of_one: Callable[[list[float], int], float]) -> list[list[float]]:
    return [[of_one(group, index) for index in range(len(group))] for group in REWARDS]


def z(value: float, values: Sequence[float]) -> float:
    return (value - statistics.mean(values)) / (statistics.stdev(values) + 1e-6)


EVERY = [reward for group in REWARDS for reward in group]
CENTERED = [reward - statistics.mean(group) for group in REWARDS for reward in group]
FORMULAS: dict[Advantage, Callable[[list[float], int], float]] = {
    "group": lambda group, i: z(group[i], group),
    "group_mean": lambda group, i: group[i] - statistics.mean(group),
    "group_rate": lambda group, i: group[i] / (sum(group) / len(group)) - 1,
    "leave_one_out": lambda group, i: group[i] - statistics.mean(group[:i] + group[i + 1 :]),
    "batch": lambda group, i: z(group[i], EVERY),
    "group_batch": lambda group, i: z(group[i] - statistics.mean(group), CENTERED),
}


@pytest.mark.parametrize("how", FORMULAS)
def test_advantages_are_their_formula(how: Advantage) -> None:
    found = advantages(torch.tensor(REWARDS, dtype=torch.float64), how)
    np.testing.assert_allclose(found.numpy(), by_group(FORMULAS[how]), rtol=1e-12, atol=1e-12)


def test_a_group_without_a_difference_has_no_advantage() -> None:
    for how in ("group", "group_mean", "group_rate", "leave_one_out", "group_batch"):
        assert advantages(torch.tensor(REWARDS, dtype=torch.float64), how)[1].abs().max() < 1e-12, how


def test_by_the_success_rate_few_right_answers_weigh_as_much_as_many_before_the_mean_is_subtracted() -> None:
    """As in the gradient of log p(success): one right answer of four, as much as three of four. Where none is right,
    nothing is learned."""
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.float64)
    found = advantages(rewards, "group_rate")
    assert ((found + 1) * rewards).sum(1).tolist() == pytest.approx([4, 4, 0])
    assert found[2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("by_sequence", [False, True])
def test_the_clipped_surrogate_and_its_gradient_are_the_formula(by_sequence: bool) -> None:
    log_probs, old, advantage = tokens(0).mul(0.5).requires_grad_(), tokens(1).mul(0.5), tokens(2)
    ours = clipped_surrogate(log_probs, old, advantage, 0.1, 0.3, LENGTHS if by_sequence else None)
    factors = torch.linspace(0.5, 2, len(old), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((ours.losses * factors).sum(), log_probs)

    plain = log_probs.detach().clone().requires_grad_()
    losses = []
    for own, before, a in zip(*(torch.split(each, LENGTHS) for each in (plain, old, advantage)), strict=True):
        for t in range(len(own)):
            ratio = torch.exp((own - before).mean()) if by_sequence else torch.exp(own[t] - before[t])
            bounded = 0.9 if ratio < 0.9 else 1.3 if ratio > 1.3 else ratio
            losses.append(-min(ratio * a[t], bounded * a[t]))
    expected = torch.stack([torch.as_tensor(loss) for loss in losses])
    (their_gradient,) = torch.autograd.grad((expected * factors).sum(), plain)
    torch.testing.assert_close(ours.losses, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-10, atol=1e-12)
    assert 0 < ours.clipped.sum() < len(old)
    if not by_sequence:
        assert torch.equal(gradient == 0, ours.clipped)


def test_k3_is_its_formula_and_on_average_the_divergence() -> None:
    """Over all tokens of a vocabulary, weighted by the policy, it is KL(π ‖ ρ)."""
    policy, reference = (torch.log_softmax(tokens(seed, 50), 0) for seed in (3, 4))
    expected = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * k3(policy, reference)).sum(), expected, rtol=1e-12, atol=1e-12)
    assert k3(policy, reference).min() >= 0
    log_p, log_ref = policy[0].item(), reference[0].item()
    one = k3(policy[:1], reference[:1]).item()
    assert one == pytest.approx(math.exp(log_ref - log_p) - (log_ref - log_p) - 1, rel=1e-12)


def test_weights_make_the_normalizations_of_the_papers() -> None:
    losses = tokens(5)
    own = completions(losses)
    expected = {
        "tokens": sum(map(sum, own)) / sum(LENGTHS),
        "sequences": statistics.mean(statistics.mean(each) for each in own),
        "constant": statistics.mean(sum(each) / 16 for each in own),
    }
    for how, value in expected.items():
        weights = token_weights(LENGTHS, how, 16, sum(LENGTHS), len(LENGTHS))  # type: ignore[arg-type]
        assert (losses * weights).sum().item() == pytest.approx(value, rel=1e-12), how
        parts = [  # accumulated over batches
            (part * token_weights([len(part)], how, 16, sum(LENGTHS), len(LENGTHS))).sum().item()  # type: ignore[arg-type]
            for part in torch.split(losses, LENGTHS)
        ]
        assert sum(parts) == pytest.approx(value, rel=1e-12), how


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_advantage_estimates_are_the_sum_of_the_paper(gamma: float, lam: float) -> None:
    rewards, values = tokens(6, 5), tokens(7, 5)
    later = [*values.tolist()[1:], 0.0]
    deltas = [r + gamma * v1 - v for r, v1, v in zip(rewards.tolist(), later, values.tolist(), strict=True)]
    expected = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, 5)) for t in range(5)]
    assert gae(rewards, values, gamma, lam).tolist() == pytest.approx(expected, rel=1e-12)


def test_with_lambda_1_the_returns_are_the_rewards_to_come() -> None:
    rewards, values = tokens(6, 5), tokens(7, 5)
    returns = gae(rewards, values, 1.0, 1.0) + values
    assert returns.tolist() == pytest.approx(suffix_sums(rewards, [5]).tolist(), rel=1e-12)


def test_value_losses_and_their_gradient_are_the_formula() -> None:
    values, old, returns = tokens(8).requires_grad_(), tokens(9), tokens(10)
    losses = value_losses(values, old, returns, 0.2)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    expected, slopes = [], []
    for v, o, r in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True):
        near = min(max(v, o - 0.2), o + 0.2)
        free, bounded = 0.5 * (v - r) ** 2, 0.5 * (near - r) ** 2
        expected.append(max(free, bounded))
        slopes.append(v - r if free >= bounded or near == v else 0.0)
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)
    assert gradient.tolist() == pytest.approx(slopes, rel=1e-12)
    assert 0.0 in slopes
    free = value_losses(values, old, returns, None)
    assert free.tolist() == pytest.approx(
        [0.5 * (v - r) ** 2 for v, r in zip(values.tolist(), returns.tolist(), strict=True)]
    )


def test_whitened_values_have_mean_0_or_their_own_and_deviation_1() -> None:
    values = 3 + 2 * tokens(11, 100)
    assert whitened(values).mean().item() == pytest.approx(0, abs=1e-12)
    assert whitened(values).std().item() == pytest.approx(1, rel=1e-5)
    assert whitened(values, center=False).mean().item() == pytest.approx(values.mean().item(), rel=1e-12)


@pytest.mark.parametrize(("group", "share"), [(2, 0.7048), (4, 0.4532), (8, 0.2044), (16, 0.0418)])
def test_groups_without_a_difference_are_predicted_by_the_success_rate(group: int, share: float) -> None:
    """(1 − p)^G + p^G at p = 0.18."""
    assert dead_share([18], 100, group) == pytest.approx(0.82**group + 0.18**group, abs=0.03)
    assert 0.82**group + 0.18**group == pytest.approx(share, abs=5e-4)


def test_the_prediction_from_samples_has_no_bias() -> None:
    """Over every outcome of four samples, weighted by its probability."""
    p, samples, group = 0.3, 4, 3
    mean = sum(
        math.comb(samples, k) * p**k * (1 - p) ** (samples - k) * dead_share([k], samples, group)
        for k in range(samples + 1)
    )
    assert mean == pytest.approx(p**group + (1 - p) ** group, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "bias"),
    [("a few prompts are easy", 0.04), ("half of the prompts never succeed", 0.09), ("all prompts alike", 0.08)],
)
def test_larger_groups_are_predicted_from_smaller_ones_in_simulation(name: str, bias: float) -> None:
    """Few prompts and samples overstate how far prompts differ, and not all rates are beta distributed. The shares of
    successes themselves would be off by 0.2 where all prompts are alike."""
    random = np.random.default_rng(0)
    rates = {
        "a few prompts are easy": random.beta(0.3, 1.0, 100_000),
        "half of the prompts never succeed": random.random(100_000) * (random.random(100_000) < 0.5),
        "all prompts alike": np.full(100_000, 0.18),
    }[name]
    for prompts, samples, group in ((64, 8, 8), (64, 8, 16), (16, 8, 16), (16, 8, 32), (16, 4, 8)):
        truth = float((rates**group + (1 - rates) ** group).mean())
        predicted = [
            dead_share(random.binomial(samples, random.choice(rates, prompts)).tolist(), samples, group)
            for _ in range(200)
        ]
        assert np.mean(predicted) == pytest.approx(truth, abs=bias), (prompts, samples, group)


@pytest.mark.parametrize("successes", [[0] * 16, [8] * 16, [0] * 8 + [8] * 8, [0], [0, 1] * 8])
def test_a_larger_group_has_a_difference_more_often(successes: list[int]) -> None:
    shares = [dead_share(successes, 8, group) for group in (8, 16, 32)]
    assert 1 >= shares[0] >= shares[1] > shares[2] > 0


def test_without_any_success_most_larger_groups_stay_dead() -> None:
    assert dead_share([0] * 4, 4, 8) > 0.9
    assert dead_share([0] * 16, 8, 32) > 0.95


def test_two_samples_of_two_prompts_show_how_much_prompts_differ() -> None:
    assert dead_share([0, 2], 2, 4) > 0.9
    assert dead_share([1, 1], 2, 4) == pytest.approx(2 * 0.5**4, abs=0.01)


def test_with_one_sample_of_each_prompt_only_the_mean_rate_is_known() -> None:
    assert dead_share([0, 1, 0, 0], 1, 4) == pytest.approx(0.75**4 + 0.25**4, abs=0.03)


def test_the_bound_on_sums_solves_its_equation_and_holds_in_simulation() -> None:
    x = martingale_bound(40.0, 3.0, 0.01)
    assert 2 * math.exp(-(x**2) / (2 * (40.0 + 3.0 * x / 3))) == pytest.approx(0.01, rel=1e-9)
    walks = np.random.default_rng(0).choice([-1.0, 1.0], (4000, 200)).sum(1)
    assert (np.abs(walks) > martingale_bound(200.0, 1.0, 0.05)).mean() <= 0.05


def test_sums_to_the_end_are_of_each_completion() -> None:
    values = tokens(12)
    expected: list[Any] = [sum(each[t:]) for each in completions(values) for t in range(len(each))]
    assert suffix_sums(values, LENGTHS).tolist() == pytest.approx(expected, rel=1e-12)
