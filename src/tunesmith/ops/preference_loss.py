"""The losses of direct preference optimization and its heirs, as functions of sequences' log-probabilities.

With x the prompt, y⁺ the better and y⁻ the worse completion, π the policy and ρ the reference:
a = log π(y⁺|x) − log ρ(y⁺|x), b = log π(y⁻|x) − log ρ(y⁻|x), and ā, b̄ the same per token of the completion.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PairLossName = Literal[
    "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down", "discopop",
    "simpo", "orpo", "cpo",
]  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """Pairs of completions of one prompt, (pairs,) each.

    Attributes:
        better: log π(y⁺|x), summed over its tokens, in nats.
        worse: log π(y⁻|x).
        reference_better: log ρ(y⁺|x); not read by losses without a reference.
        reference_worse: log ρ(y⁻|x).
        better_tokens: tokens of y⁺.
        worse_tokens: tokens of y⁻.
    """

    better: Tensor
    worse: Tensor
    reference_better: Tensor
    reference_worse: Tensor
    better_tokens: Tensor
    worse_tokens: Tensor

    @property
    def a(self) -> Tensor:
        return self.better - self.reference_better

    @property
    def b(self) -> Tensor:
        return self.worse - self.reference_worse

    @property
    def mean_better(self) -> Tensor:
        """log π(y⁺|x) per token."""
        return self.better / self.better_tokens

    @property
    def mean_worse(self) -> Tensor:
        return self.worse / self.worse_tokens


def pair_losses(
    name: PairLossName, pairs: Pairs, beta: float, smoothing: float = 0.0, target_margin: float = 0.0
) -> Tensor:
    """The loss of each pair (pairs,).

    Args:
        name: which one; its function here has the formula and the paper.
        pairs: log-probabilities.
        beta: β, how strongly the policy is held to the reference, or a scale.
        smoothing: ε, the share of pairs that are labeled the wrong way.
        target_margin: γ of SimPO.
    """
    if name in ("sigmoid", "robust", "exo_pair"):
        return _SMOOTHED[name](beta * (pairs.a - pairs.b), smoothing)
    if name == "simpo":
        return _simpo(pairs, beta, target_margin, smoothing)
    if name == "cpo":
        return sigmoid(beta * (pairs.better - pairs.worse), smoothing)
    return _LOSSES[name](pairs, beta)


def sigmoid(z: Tensor, smoothing: float) -> Tensor:
    """−(1 − ε) log σ(z) − ε log σ(−z), z = β (a − b) (Rafailov et al. 2023, eq. 7; ε as in its "conservative DPO")."""
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def robust(z: Tensor, smoothing: float) -> Tensor:
    """(−(1 − ε) log σ(z) + ε log σ(−z)) / (1 − 2ε): unbiased for a share ε flipped (Chowdhury et al. 2024, eq. 12)."""
    return (-(1 - smoothing) * logsigmoid(z) + smoothing * logsigmoid(-z)) / (1 - 2 * smoothing)


def exo_pair(z: Tensor, smoothing: float) -> Tensor:
    """KL(σ(±z) ‖ (1 − ε, ε)), the reverse of DPO's direction (Ji et al. 2024, eq. 16); ε = 0.001 if it is 0."""
    epsilon = torch.tensor(smoothing or 1e-3, dtype=z.dtype, device=z.device)
    return torch.sigmoid(z) * (logsigmoid(z) - torch.log1p(-epsilon)) + torch.sigmoid(-z) * (
        logsigmoid(-z) - torch.log(epsilon)
    )


def _hinge(pairs: Pairs, beta: float) -> Tensor:
    """max(0, 1 − β (a − b)) (SLiC: Zhao et al. 2023; in this form Liu et al. 2024, "RSO", eq. 10)."""
    return torch.relu(1 - beta * (pairs.a - pairs.b))


def _ipo(pairs: Pairs, beta: float) -> Tensor:
    """(ā − b̄ − 1 / 2β)² (Azar et al. 2023, eq. 17, with log-ratios per token, as its authors have it in TRL)."""
    return (pairs.a / pairs.better_tokens - pairs.b / pairs.worse_tokens - 1 / (2 * beta)).square()


def _nca_pair(pairs: Pairs, beta: float) -> Tensor:
    """−log σ(βa) − ½ log σ(−βa) − ½ log σ(−βb) (Chen et al. 2024, "Noise contrastive alignment", table 2)."""
    a, b = beta * pairs.a, beta * pairs.b
    return -logsigmoid(a) - 0.5 * logsigmoid(-a) - 0.5 * logsigmoid(-b)


def _sppo_hard(pairs: Pairs, beta: float) -> Tensor:
    """(a − 1/2β)² + (b + 1/2β)² (Wu et al. 2024, "Self-play preference optimization", eq. 4.7 for won and lost)."""
    return (pairs.a - 0.5 / beta).square() + (pairs.b + 0.5 / beta).square()


def _apo_zero(pairs: Pairs, beta: float) -> Tensor:
    """1 − σ(βa) + σ(βb): the better one becomes likelier (D'Oosterlinck et al. 2024, eq. 8)."""
    return 1 - torch.sigmoid(beta * pairs.a) + torch.sigmoid(beta * pairs.b)


def _apo_down(pairs: Pairs, beta: float) -> Tensor:
    """σ(βa) + 1 − σ(β(a − b)): for a policy that is better than both (D'Oosterlinck et al. 2024, eq. 9)."""
    return torch.sigmoid(beta * pairs.a) + 1 - torch.sigmoid(beta * (pairs.a - pairs.b))


DISCOPOP_TEMPERATURE = 0.05


def _discopop(pairs: Pairs, beta: float) -> Tensor:
    """(1 − σ(z/τ)) · −log σ(z) + σ(z/τ) · e⁻ᶻ, z = β (a − b), τ = 0.05 (Lu et al. 2024, "DiscoPOP", section 5)."""
    z = beta * (pairs.a - pairs.b)
    share = torch.sigmoid(z / DISCOPOP_TEMPERATURE)
    return -logsigmoid(z) * (1 - share) + torch.exp(-z) * share


def _simpo(pairs: Pairs, beta: float, target_margin: float, smoothing: float) -> Tensor:
    """−log σ(β (log π(y⁺)/|y⁺| − log π(y⁻)/|y⁻|) − γ), without a reference (Meng et al. 2024, eq. 6)."""
    return sigmoid(beta * (pairs.mean_better - pairs.mean_worse) - target_margin, smoothing)


def _orpo(pairs: Pairs, beta: float) -> Tensor:
    """−λ log σ(log odds(y⁺) / odds(y⁻)), odds = p / (1 − p) with p = e^{mean log π}, λ = β; the paper adds the loss of
    y⁺ itself: `sft_weight` (Hong et al. 2024, eq. 6 to 8)."""
    better, worse = pairs.mean_better, pairs.mean_worse
    odds = (better - worse) - (torch.log1p(-torch.exp(better)) - torch.log1p(-torch.exp(worse)))
    return -beta * logsigmoid(odds)


_SMOOTHED: dict[str, Callable[[Tensor, float], Tensor]] = {"sigmoid": sigmoid, "robust": robust, "exo_pair": exo_pair}
_LOSSES: dict[str, Callable[[Pairs, float], Tensor]] = {
    "hinge": _hinge,
    "ipo": _ipo,
    "nca_pair": _nca_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "orpo": _orpo,
}

WITHOUT_REFERENCE = frozenset({"simpo", "orpo", "cpo"})
"""Losses that need no reference."""


def kto_losses(ratios: Tensor, is_good: Tensor, baseline: Tensor, beta: float, weights: tuple[float, float]) -> Tensor:
    """λ_D (1 − σ(β (r − z₀))) for good completions and λ_U (1 − σ(β (z₀ − r))) for bad ones (Ethayarajh et al. 2024,
    eq. 8).

    Args:
        ratios: r = log π(y|x) − log ρ(y|x) (completions,).
        is_good: (completions,) bool.
        baseline: z₀, an estimate of KL(π ‖ ρ), ≥ 0: a scalar without gradient.
        beta: β.
        weights: λ_D and λ_U.
    """
    desirable, undesirable = weights
    value = torch.sigmoid(beta * torch.where(is_good, ratios - baseline, baseline - ratios))
    return torch.where(is_good, desirable * (1 - value), undesirable * (1 - value))


def plackett_luce_loss(rewards: Tensor, scores: list[float]) -> Tensor:
    """−Σₖ log (e^{rₖ} / Σ_{j not better than k} e^{rⱼ}), from the best one on (Plackett 1975; Luce 1959; for DPO
    Rafailov et al. 2023, eq. 20). Equal scores share a denominator (Breslow 1974); the lowest ones say nothing more.

    Args:
        rewards: (completions,), such as β (log π − log ρ).
        scores: of each, higher is better.

    Returns:
        A scalar.
    """
    loss = rewards.new_zeros(())
    for number, score in enumerate(scores):
        if score > min(scores):
            others = [other for other, value in enumerate(scores) if value <= score]
            loss = loss + torch.logsumexp(rewards[others], 0) - rewards[number]
    return loss


def bradley_terry_losses(difference: Tensor, is_tie: Tensor, margins: Tensor) -> Tensor:
    """−log σ(d − m), d = r(y⁺) − r(y⁻) (Bradley & Terry 1952; the margin m as in Touvron et al. 2023, eq. 2). For a tie
    −½ log σ(d) − ½ log σ(−d): both ways are as likely.

    Args:
        difference: d (pairs,).
        is_tie: (pairs,) bool.
        margins: m (pairs,).
    """
    return torch.where(
        is_tie, -0.5 * (logsigmoid(difference) + logsigmoid(-difference)), -logsigmoid(difference - margins)
    )
