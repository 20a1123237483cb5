"""Causal attention over documents laid end to end, each attending to itself alone.

softmax(q kᵀ · scale + mask) v  per document (Vaswani et al. 2017, eq. 1), which is what each document would get alone.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


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


LENGTH_STEP = 32
"""Within the kernel, lengths are a multiple of it: each new one costs a CPU milliseconds of code generation, and
megabytes that are kept."""


def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    scale: float,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`document_attention_reference` through PyTorch's fused kernel, without a mask over the row.

    Documents are filled up to a multiple of `LENGTH_STEP`, behind their end, where nothing looks; those of one length
    go through the kernel together. `dropout` is the share of probabilities zeroed.
    """
    grouped = q.shape[1] != k.shape[1]
    together: dict[int, list[int]] = {}
    for document, length in enumerate(lengths):
        together.setdefault(-(-length // LENGTH_STEP) * LENGTH_STEP, []).append(document)
    split = [tensor.split(lengths, 2) for tensor in (q, k, v)]
    outs = [q] * len(lengths)
    for length, documents in together.items():
        query, key, value = (  # (documents, heads, length, dim)
            torch.cat([pad(parts[each], (0, 0, 0, length - lengths[each])) for each in documents]) for parts in split
        )
        mask = None if window is None or length <= window else _seen_through(window, length, q.device)
        out = scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
        for each, part in zip(documents, out.split(1), strict=True):
            outs[each] = part[:, :, : lengths[each]]
    return outs[0] if len(outs) == 1 else torch.cat(outs, 2)


def _seen_through(window: int, tokens: int, device: torch.device) -> Tensor:
    """(tokens, tokens) bool: which keys each query of one document may see."""
    at = torch.arange(tokens, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < window)
