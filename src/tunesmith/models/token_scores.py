"""What the losses on sampled tokens need of a model: log p of each, with gradients, and the entropy there."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tunesmith.models.forward import CHUNK, all_logits


class TokenScores(NamedTuple):
    """Of each token.

    Attributes:
        log_probs: (tokens,) log p at the temperature, with gradients, in nats.
        plain: (tokens,) log p at temperature 1, without gradients.
        entropies: (tokens,) of the distribution at the temperature, without gradients, in nats: the mean of −log p.
        variances: (tokens,) of log p under that distribution, without gradients, in nats².
    """

    log_probs: Tensor
    plain: Tensor
    entropies: Tensor
    variances: Tensor


def token_scores(model: PreTrainedModel, hidden: Tensor, labels: Tensor, temperature: float = 1.0) -> TokenScores:
    """Score tokens in chunks, so that all logits are never in memory at once.

    Args:
        model: gives the logits.
        hidden: (tokens, hidden) the last hidden states before them, as `loss_hidden_states` returns them.
        labels: (tokens,) int64.
        temperature: the logits are divided by it.

    Returns:
        fp32 or wider.
    """
    parts = [
        checkpoint(_scores, model, rows, targets, temperature, use_reentrant=False)
        for rows, targets in zip(torch.split(hidden, CHUNK), torch.split(labels, CHUNK), strict=True)
    ]
    return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _scores(model: PreTrainedModel, rows: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, ...]:
    logits = all_logits(model, rows)
    own = logits.gather(-1, targets[:, None])[:, 0]
    scaled = logits / temperature if temperature != 1 else logits
    totals = torch.logsumexp(scaled, -1)
    log_probs = own / temperature - totals
    with torch.no_grad():
        plain = log_probs.detach() if temperature == 1 else own - torch.logsumexp(logits, -1)
        probabilities = torch.softmax(scaled, -1)
        logs = (scaled - totals[:, None]).clamp_min(-1e4)  # a masked token has p = 0 and log p = −∞
        entropies = -(probabilities * logs).sum(-1)
        variances = (probabilities * logs.square()).sum(-1) - entropies.square()
    return log_probs, plain.detach(), entropies.detach(), variances.detach()
