"""Policy gradients: advantages from rewards, the clipped surrogate loss, and distances to a reference.

Every function is the formula of its paper on plain tensors. Rewards come in groups: one row for each prompt, one column
for each of its completions. Tokens come concatenated, completion after completion, with the length of each.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Advantage = Literal["group", "group_mean", "group_rate", "leave_one_out", "batch", "group_batch"]
"""How rewards become advantages; `advantages` has the formulas."""

EPS = 1e-6
"""Added to a standard deviation before dividing by it."""


def advantages(rewards: Tensor, how: Advantage) -> Tensor:
    """How much better each completion is than others.

    `group`: (r − mean) / (std + ε) over the prompt's completions (GRPO, Shao et al. 2024, section 4.1.2).
    `group_mean`: r − mean over the prompt's completions (Dr. GRPO, Liu et al. 2025, section 3.1).
    `group_rate`: (r − mean) / mean over the prompt's completions, and 0 if the mean is 0 (MaxRL, Tajwar et al. 2026,
    algorithm 1): with rewards of 0 and 1, the larger the groups, the closer to the gradient of log p(success) instead
    of p(success).
    `leave_one_out`: r − mean over the prompt's other completions (RLOO, Ahmadian et al. 2024, eq. 6).
    `batch`: (r − mean) / (std + ε) over all completions (REINFORCE++, Hu 2025, eq. 6).
    `group_batch`: r − mean over the prompt's completions, then the same over all completions (REINFORCE++ with a
    baseline, Hu 2025).

    Args:
        rewards: (prompts, completions); for `group_rate`, none below 0.
        how: the formula.

    Returns:
        (prompts, completions).
    """
    if how == "batch":
        return (rewards - rewards.mean()) / (_std(rewards) + EPS)
    centered = rewards - rewards.mean(1, keepdim=True)
    if how == "leave_one_out":  # r − (Σ − r) / (n − 1)
        count = rewards.shape[1]
        return centered * count / (count - 1)
    if how == "group_rate":
        mean = rewards.mean(1, keepdim=True)
        return centered / torch.where(mean > 0, mean, torch.inf)
    if how == "group":
        return centered / (_std(rewards, 1) + EPS)
    if how == "group_batch":
        return (centered - centered.mean()) / (_std(centered) + EPS)
    return centered


def _std(values: Tensor, dim: int | None = None) -> Tensor:
    """With Bessel's correction; 0 for a single value."""
    count = values.numel() if dim is None else values.shape[dim]
    if count == 1:
        return torch.zeros_like(values).sum() if dim is None else torch.zeros_like(values)
    return values.std() if dim is None else values.std(dim, keepdim=True)


def of_sequences(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mean of each completion's tokens, at each of its tokens: (tokens,) for (tokens,)."""
    counts = torch.tensor(lengths, device=values.device)
    sequence = torch.repeat_interleave(
        torch.arange(len(counts), device=values.device), counts, output_size=sum(lengths)
    )
    sums = values.new_zeros(len(counts)).index_add(0, sequence, values)
    return (sums / counts.to(values.dtype))[sequence]


class Surrogate(NamedTuple):
    """The clipped surrogate at each token.

    Attributes:
        losses: (tokens,) −min(ρ A, clip(ρ) A), with gradients.
        clipped: (tokens,) bool: where the clipped term is the smaller one, so that no gradient passes.
        ratios: (tokens,) ρ, without gradients.
    """

    losses: Tensor
    clipped: Tensor
    ratios: Tensor


def clipped_surrogate(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    low: float,
    high: float,
    lengths: Sequence[int] | None = None,
) -> Surrogate:
    """−min(ρ A, clip(ρ, 1 − low, 1 + high) A) with ρ = π(token) / π_old(token) (PPO, Schulman et al. 2017, eq. 7; two
    different bounds: DAPO, Yu et al. 2025, eq. 10).

    Args:
        log_probs: (tokens,) log π of each token, with gradients.
        old: (tokens,) log π_old.
        advantages: (tokens,).
        low: how far ρ may fall below 1.
        high: how far it may rise above 1.
        lengths: tokens of each completion; with it, ρ is the geometric mean over the completion (GSPO, Zheng et al.
            2025, eq. 7).

    Returns:
        The losses at each token.
    """
    log_ratios = log_probs - old
    if lengths is not None:
        log_ratios = of_sequences(log_ratios, lengths)
    ratios = torch.exp(log_ratios)
    free, bounded = ratios * advantages, ratios.clamp(1 - low, 1 + high) * advantages
    return Surrogate(-torch.minimum(free, bounded), (bounded < free).detach(), ratios.detach())


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """π_ref / π − log(π_ref / π) − 1, an estimate of KL(π ‖ π_ref) without bias for tokens that π has sampled, never
    negative (Schulman 2020; GRPO, Shao et al. 2024, eq. 4).

    Args:
        log_probs: (tokens,) log π.
        reference: (tokens,) log π_ref.

    Returns:
        (tokens,) in nats.
    """
    difference = reference - log_probs
    return torch.exp(difference) - difference - 1


def token_weights(
    lengths: Sequence[int], how: Literal["tokens", "sequences", "constant"], most: int, tokens: int, completions: int
) -> Tensor:
    """The weight of each token of each completion, so that the weighted sum over a step's tokens is:

    `tokens`: their mean over all tokens (DAPO, Yu et al. 2025, eq. 12).
    `sequences`: the mean over completions of the mean over a completion's tokens (GRPO, Shao et al. 2024, eq. 3).
    `constant`: the mean over completions of their sum divided by a constant (Dr. GRPO, Liu et al. 2025, section 3.2).

    Args:
        lengths: tokens of each completion of a batch.
        how: the normalization.
        most: the constant: the most tokens of a completion.
        tokens: of all completions of the step.
        completions: of the step.

    Returns:
        (tokens of the batch,), float64.
    """
    if how == "tokens":
        return torch.full((sum(lengths),), 1 / tokens, dtype=torch.float64)
    counts = torch.tensor(lengths)
    divisors = (counts if how == "sequences" else torch.full_like(counts, most)).double()
    return torch.repeat_interleave(1 / (completions * divisors), counts, output_size=sum(lengths))


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimates (Schulman et al. 2016, eq. 16) of one completion, after which the value is 0.

    Σ (γ λ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} − V_t.

    Args:
        rewards: (tokens,).
        values: (tokens,) of the state before each token.
        gamma: γ, the discount.
        lam: λ.

    Returns:
        (tokens,).
    """
    following = torch.cat([values[1:], values.new_zeros(1)])
    deltas = (rewards + gamma * following - values).tolist()
    estimates, last = [], 0.0
    for delta in reversed(deltas):
        last = delta + gamma * lam * last
        estimates.append(last)
    return values.new_tensor(estimates[::-1])


def whitened(values: Tensor, center: bool = True) -> Tensor:
    """(values − mean) / (std + ε), or without a shift of the mean (Ziegler et al. 2019, their code).

    Args:
        values: any shape.
        center: whether the mean becomes 0.
    """
    mean = values.mean()
    scaled = (values - mean) / (_std(values) + EPS)
    return scaled if center else scaled + mean


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """½ (V − R)², or the larger of it and ½ (clip(V, old ± clip) − R)² (PPO's reference code).

    Args:
        values: (tokens,) with gradients.
        old: (tokens,) when the completions were sampled.
        returns: (tokens,) R.
        clip: how far the value may move; None: as far as it wants.

    Returns:
        (tokens,).
    """
    losses = (values - returns).square()
    if clip is not None:
        near = old + (values - old).clamp(-clip, clip)
        losses = torch.maximum(losses, (near - returns).square())
    return 0.5 * losses


def martingale_bound(variance: float, largest: float, probability: float) -> float:
    """How far a sum of increments of mean zero is from zero at most, except with this probability (Freedman 1975,
    theorem 1.6): the x with 2 exp(−x² / (2 (V + M x / 3))) = probability.

    Args:
        variance: V, the sum of the increments' variances, each given what came before it.
        largest: M, of an increment.
        probability: of more.
    """
    log = math.log(2 / probability)
    linear = log * largest / 3
    return linear + math.sqrt(linear**2 + 2 * variance * log)


def suffix_sums(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """At each token, the sum from there to the end of its completion (tokens,)."""
    return torch.cat([part.flip(0).cumsum(0).flip(0) for part in torch.split(values, list(lengths))])


LEAST_SPREAD, MOST_SPREAD = 1e-3, 0.95
"""Of the rates of success, as an intraclass correlation: 0 if all prompts have one rate, 1 if each always or never
succeeds."""


def dead_share(successes: Sequence[int], samples: int, group: int) -> float:
    """The share of groups in which all rewards will be equal, E[(1 − p)^G + p^G], if a completion succeeds or fails.

    Estimated from samples of each prompt. For a group that is not larger than these: without bias, by drawing it from
    them without replacement. For a larger one: by a beta distribution of p over the prompts (Skellam 1948) with the
    mean and the spread that were measured (Kleinman 1973). The share of successes of each prompt will not do there: a
    prompt without any would be dead in a group of any size.

    Args:
        successes: of each prompt, how many of its samples succeeded.
        samples: of each prompt.
        group: G.

    Returns:
        The mean over the prompts.
    """
    if group > samples:
        return _dead_beyond(successes, samples, group)

    def all_of(count: int) -> float:
        product = 1.0
        for drawn in range(group):
            product *= max(0, count - drawn) / (samples - drawn)
        return product

    return sum(all_of(count) + all_of(samples - count) for count in successes) / len(successes)


def _dead_beyond(successes: Sequence[int], samples: int, group: int) -> float:
    """`dead_share` of a group larger than the samples."""
    prompts = len(successes)
    little = 0.5 / prompts  # a success and a failure more, so that the rate is never 0 or 1
    rate = (sum(successes) + little) / (prompts * samples + 2 * little)
    spread = LEAST_SPREAD
    if samples > 1 and prompts > 1:
        ratio = statistics.variance(count / samples for count in successes) * samples / (rate * (1 - rate))
        spread = min(max((ratio - 1) / (samples - 1), LEAST_SPREAD), MOST_SPREAD)
    concentration = 1 / spread - 1
    a, b = rate * concentration, (1 - rate) * concentration
    return sum(
        math.exp(math.lgamma(own + group) - math.lgamma(own) + math.lgamma(a + b) - math.lgamma(a + b + group))
        for own in (a, b)
    )
