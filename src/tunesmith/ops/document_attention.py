"""Attention over packed documents: tokens attend only within their own document, and to a prefix that all share.

softmax(q kᵀ · scale + mask) v  per document (Vaswani et al. 2017, eq. 1), the same as for each document by itself.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from tunesmith.ops import cuda, native

Prefix = tuple[Tensor, Tensor]
"""Keys (1, kv_heads, prefix, dim) and values (1, kv_heads, prefix, value_dim) that come before every document."""


def document_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    scale: float,
    window: int | None = None,
    causal: bool = True,
    prefix: Prefix | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The definition, with one explicit mask over the full row. `document_attention` is tested against this.

    Args:
        q: (1, heads, tokens, dim).
        k: (1, kv_heads, tokens, dim); heads is a multiple of kv_heads (grouped queries, Ainslie et al. 2023).
        v: (1, kv_heads, tokens, value_dim).
        lengths: tokens of each document, in order; they add up to tokens.
        scale: multiplies q kᵀ.
        window: a token attends to tokens at a distance < window (itself: 0); None for no limit.
        causal: whether a token attends only to itself and earlier tokens (decoders), or to later ones too (encoders).
        prefix: keys and values before every document, subject to the window.
        softcap: scores become softcap · tanh(scores / softcap) (Gemma team 2024, section 2).
        sinks: (heads,), one score per head that enters the softmax but has no value (Agarwal et al. 2025, gpt-oss).

    Returns:
        (1, heads, tokens, value_dim).
    """
    sizes = torch.tensor(lengths, device=q.device)
    document = torch.repeat_interleave(torch.arange(len(lengths), device=q.device), sizes)
    at = torch.arange(len(document), device=q.device)
    before = 0 if prefix is None else prefix[0].shape[2]
    reach = before + len(document) if window is None else window
    distance = at[:, None] - at[None, :]
    seen = (document[:, None] == document[None, :]) & (distance.abs() < reach)
    if causal:
        seen &= distance >= 0
    if prefix is not None:
        k, v = torch.cat([prefix[0], k], 2), torch.cat([prefix[1], v], 2)
        own = at - (sizes.cumsum(0) - sizes)[document]  # within the document
        seen = torch.cat([own[:, None] + before - torch.arange(before, device=q.device) < reach, seen], 1)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return attend(q, k, v, scale, seen, 0.0, softcap, sinks)


LENGTH_STEP = 32
"""Documents are padded to a multiple of this for PyTorch's kernel. Each new length costs a CPU milliseconds of code
generation, and megabytes that are never freed."""


def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    scale: float,
    window: int | None = None,
    dropout: float = 0.0,
    causal: bool = True,
    prefix: Prefix | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`document_attention_reference` without the mask over the full row.

    A native kernel (CPU, bf16 and fp32) or FlashAttention (CUDA, bf16) handles packed documents directly. Otherwise
    PyTorch's kernel runs on padded documents: each is padded at its end, which no causal token sees, to a multiple of
    `LENGTH_STEP`, and documents of the same padded length form one batch. The rows are gathered with `embedding`, whose
    backward pass adds up rows that were gathered twice. Soft caps, sinks, and windows in both directions use the
    definition on these batches.

    Args:
        q, k, v, lengths, scale, window, causal, prefix, softcap, sinks: as in `document_attention_reference`.
        dropout: the share of attention probabilities to zero.

    Returns:
        (1, heads, tokens, value_dim).
    """
    plain = softcap is None and sinks is None and not (window and (prefix or not causal))
    by_native = native.takes(q, k, v) and fits_native(q, v)
    if plain and (by_native or (not dropout and cuda.has_flash(q, v))):
        k, v, before = _after_prefix(k, v, lengths, prefix)
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (q, k, v))  # (tokens, heads, dim)
        if by_native:
            documents = document_layout(lengths, before)
            out: Tensor = DocumentAttention.apply(q, k, v, documents, scale, window, causal, dropout)
        else:
            out = cuda.flash_attention(q, k, v, lengths, before, scale, window, causal)
        return out.transpose(0, 1)[None]
    grouped = q.shape[1] != k.shape[1]
    groups, back = _by_length(lengths, q.device)
    flat = [tensor[0].transpose(0, 1).flatten(1) for tensor in (q, k, v)]  # (tokens, heads · dim)
    outs = []
    for at, own_lengths in groups:
        length = at.shape[1]
        query, key, value = (  # (documents, heads, length, dim)
            embedding(at, rows).unflatten(-1, (-1, tensor.shape[-1])).transpose(1, 2)
            for rows, tensor in zip(flat, (q, k, v), strict=True)
        )
        mask = _mask(own_lengths, length, window, causal, prefix, q.device)
        if prefix is not None:
            key, value = (
                torch.cat([part.expand(len(at), -1, -1, -1), own], 2)
                for part, own in zip(prefix, (key, value), strict=True)
            )
        if softcap is None and sinks is None:
            out = scaled_dot_product_attention(
                query, key, value, mask, dropout, is_causal=causal and mask is None, scale=scale, enable_gqa=grouped
            )
        else:
            if mask is None:
                mask = torch.ones(length, length, dtype=torch.bool, device=q.device)
                mask = mask.tril() if causal else mask
            key, value = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (key, value))
            out = attend(query, key, value, scale, mask, dropout, softcap, sinks)
        outs.append(out.transpose(1, 2).flatten(2).flatten(0, 1))  # (documents · length, heads · value_dim)
    rows = embedding(back, outs[0] if len(outs) == 1 else torch.cat(outs))
    output: Tensor = rows.unflatten(-1, (q.shape[1], -1)).transpose(0, 1)[None]
    return output


def _by_length(lengths: list[int], device: torch.device) -> tuple[list[tuple[Tensor, list[int]]], Tensor]:
    """Group documents by padded length.

    Returns:
        For each group, the row indices of its tokens (documents, length), where padding repeats the document's last
        token, and the documents' lengths; then each token's index in the concatenation of all groups (tokens,).
    """
    own = np.array(lengths)
    ends = own.cumsum()
    padded = -(-own // LENGTH_STEP) * LENGTH_STEP
    back = np.empty(ends[-1], np.int64)
    groups = []
    before = 0
    for length in dict.fromkeys(padded.tolist()):
        (documents,) = np.nonzero(padded == length)
        at = (ends - own)[documents, None] + np.arange(length)
        inside = at < ends[documents, None]
        back[at[inside]] = before + np.flatnonzero(inside)
        before += at.size
        at = np.minimum(at, ends[documents, None] - 1)
        groups.append((torch.tensor(at, device=device), own[documents].tolist()))
    return groups, torch.tensor(back, device=device)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    seen: Tensor,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """softmax(scores) v, step by step. `seen` marks the keys that each query attends to."""
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)], -1)
    wide_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    probabilities = torch.softmax(scores, -1, dtype=wide_dtype)[..., : k.shape[2]].to(q.dtype)
    return torch.nn.functional.dropout(probabilities, dropout) @ v


def fits_native(q: Tensor, v: Tensor) -> bool:
    return q.shape[-1] == v.shape[-1] and q.shape[-1] % 32 == 0


def document_layout(lengths: list[int], before: int) -> Tensor:
    """(documents, 4): `Document` of native/attention.h per row: first query, query count, first key, key count."""
    documents = []
    start = 0
    for number, length in enumerate(lengths):
        documents.append((start, length, start + number * before, length + before))
        start += length
    return torch.tensor(documents)


def _after_prefix(k: Tensor, v: Tensor, lengths: list[int], prefix: Prefix | None) -> tuple[Tensor, Tensor, int]:
    """Keys and values with the prefix before each document's own, and the length of the prefix."""
    if prefix is None:
        return k, v, 0
    k, v = (
        torch.cat([part for document in row.split(lengths, 2) for part in (shared, document)], 2)
        for shared, row in zip(prefix, (k, v), strict=True)
    )
    return k, v, prefix[0].shape[2]


class DocumentAttention(torch.autograd.Function):
    """The kernels of native/attention.h and attention_fp32.h. Stores q, k, v and a number per token and head; backward
    recomputes scores."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Tensor,
        scale: float,
        window: int | None,
        causal: bool,
        dropout: float,
    ) -> Tensor:
        q, k, v = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k, v))
        out = q.new_empty(q.shape)
        log_sums = q.new_empty(q.shape[:2], dtype=torch.float32)
        seed = native.random_seed() if dropout else 0
        group = q.shape[1] // k.shape[1]
        ctx.shape = native.AttentionArguments(k.shape[1], group, q.shape[2], scale, window or 0, causal, dropout, seed)
        native.call("attention", q.dtype, ctx.shape, documents, len(documents), q, k, v, out, log_sums)
        ctx.save_for_backward(q, k, v, documents, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, documents, log_sums = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(2) == 1 else grads[0].contiguous()
        grads_qkv = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in (q, k, v)]
        native.call(
            "attention_backward", q.dtype, ctx.shape, documents, len(documents), q, k, v, log_sums, grad, *grads_qkv
        )
        return *grads_qkv, None, None, None, None, None


def _mask(
    lengths: list[int],
    padded: int,
    window: int | None,
    causal: bool,
    prefix: Prefix | None,
    device: torch.device,
) -> Tensor | None:
    """Which keys each query attends to, broadcastable to (documents, heads, padded, prefix + padded) bool. None if the
    kernel's own causal mask, or no mask, does the same."""
    before = 0 if prefix is None else prefix[0].shape[2]
    reach = before + padded if window is None else window
    narrow = before + padded > reach
    at = torch.arange(padded, device=device)
    distance = at[:, None] - at[None, :]
    seen: Tensor | None = None
    if causal and (prefix is not None or narrow):
        seen = ((distance >= 0) & (distance < reach))[None, None]  # (1, 1, padded, padded)
    elif not causal and (narrow or any(length < padded for length in lengths)):
        seen = (at < torch.tensor(lengths, device=device)[:, None])[:, None, None]  # (documents, 1, 1, padded)
        # Padding attends to itself, so that its softmax is not over an empty set.
        seen = (seen & (distance.abs() < reach)) | (distance == 0) if narrow else seen
    if seen is None or prefix is None:
        return seen
    near = at[:, None] + before - torch.arange(before, device=device) < reach  # (padded, prefix)
    seen = seen.expand(-1, -1, padded, -1)
    return torch.cat([near.expand(len(seen), 1, -1, -1), seen], -1)
