"""Causal attention over documents laid end to end, each attending to itself alone.

softmax(q kᵀ · scale + mask) v  per document (Vaswani et al. 2017, eq. 1), which is what each document would get alone.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def document_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float, window: int | None = None
) -> Tensor:
    """The definition, with one explicit mask over the whole row. `document_attention` is held to this.

    Args:
        q: (1, heads, tokens, dim).
        k: (1, kv_heads, tokens, dim); heads is a multiple of kv_heads (grouped queries, Ainslie et al. 2023).
        v: (1, kv_heads, tokens, value_dim).
        lengths: of the documents, in order; they add up to tokens.
        scale: multiplies q kᵀ.
        window: how many of the latest tokens each sees, itself included; None for all.

    Returns:
        (1, heads, tokens, value_dim).
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(q.device)
    at = torch.arange(len(document), device=q.device)
    seen = (document[:, None] == document[None, :]) & (at[:, None] >= at[None, :])
    if window is not None:
        seen &= at[:, None] - at[None, :] < window
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
    return torch.softmax(scores, -1) @ v


def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    scale: float,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`document_attention_reference`, a document at a time through PyTorch's fused kernel: no mask over the row.

    `dropout` is the share of probabilities zeroed.
    """
    grouped = q.shape[1] != k.shape[1]
    parts = []
    for query, key, value in zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True):
        tokens = query.shape[2]
        mask = None if window is None or tokens <= window else _seen_through(window, tokens, q.device)
        parts.append(
            scaled_dot_product_attention(
                query, key, value, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _seen_through(window: int, tokens: int, device: torch.device) -> Tensor:
    """(tokens, tokens) bool: which keys each query of one document may see."""
    at = torch.arange(tokens, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < window)
