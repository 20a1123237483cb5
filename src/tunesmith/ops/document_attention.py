"""Attention over documents laid end to end, each attending to itself alone (and to a prefix that all of them share).

softmax(q kᵀ · scale + mask) v  per document (Vaswani et al. 2017, eq. 1), which is what each document would get alone.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from tunesmith.ops import cuda, native

Prefix = tuple[Tensor, Tensor]
"""Keys (1, kv_heads, prefix, dim) and values (1, kv_heads, prefix, value_dim) that stand before every document."""


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
    """The definition, with one explicit mask over the whole row. `document_attention` is held to this.

    Args:
        q: (1, heads, tokens, dim).
        k: (1, kv_heads, tokens, dim); heads is a multiple of kv_heads (grouped queries, Ainslie et al. 2023).
        v: (1, kv_heads, tokens, value_dim).
        lengths: of the documents, in order; they add up to tokens.
        scale: multiplies q kᵀ.
        window: how near a token must be to be seen: distance < window, itself at 0; None for all.
        causal: whether a token sees those after it (encoders) or not (decoders).
        prefix: what stands before every document, seen from within the window.
        softcap: scores become softcap · tanh(scores / softcap) (Gemma team 2024, section 2).
        sinks: (heads,) a score each that takes part in the softmax and has no value (Agarwal et al. 2025, gpt-oss).

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
    return _attend(q, k, v, scale, seen, 0.0, softcap, sinks)


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
    causal: bool = True,
    prefix: Prefix | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`document_attention_reference` without a mask over the row, which never exists.

    In bf16 through the native kernel on a CPU and through FlashAttention on CUDA, which take documents as they lie.
    Elsewhere through PyTorch's kernel for rows of one length: documents are filled up to a multiple of `LENGTH_STEP`,
    behind their end, where no causal token looks, and those of one length go together; rows are looked up as
    embeddings are, whose backward pass adds up what was looked up twice. Soft caps, sinks and windows
    that look both ways go by the definition, document by document. `dropout` is the share of probabilities zeroed.
    """
    plain = softcap is None and sinks is None and not (window and (prefix or not causal))
    by_native = native.takes(q, k, v) and _fits_native(q, v)
    if plain and (by_native or (not dropout and cuda.has_flash(q, v))):
        k, v, before = _after_prefix(k, v, lengths, prefix)
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (q, k, v))  # (tokens, heads, dim)
        if by_native:
            laid = document_layout(lengths, before)
            out: Tensor = _DocumentAttention.apply(q, k, v, laid, scale, window, causal, dropout)
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
            key, value = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (key, value))
            out = _attend(query, key, value, scale, mask, dropout, softcap, sinks)
        outs.append(out.transpose(1, 2).flatten(2).flatten(0, 1))  # (documents · length, heads · value_dim)
    rows = embedding(back, outs[0] if len(outs) == 1 else torch.cat(outs))
    found: Tensor = rows.unflatten(-1, (q.shape[1], -1)).transpose(0, 1)[None]
    return found


def _by_length(lengths: list[int], device: torch.device) -> tuple[list[tuple[Tensor, list[int]]], Tensor]:
    """Documents that are of one length when filled up: for each such group where its tokens lie in the row (documents,
    length), behind a document's end its last token again, and the documents' own lengths; and where each token of the
    row lies in all groups, one after another (tokens,)."""
    own = np.array(lengths)
    ends = own.cumsum()
    pack_any_order = -(-own // LENGTH_STEP) * LENGTH_STEP
    back = np.empty(ends[-1], np.int64)
    groups = []
    before = 0
    for length in dict.fromkeys(pack_any_order.tolist()):
        (documents,) = np.nonzero(pack_any_order == length)
        at = (ends - own)[documents, None] + np.arange(length)
        inside = at < ends[documents, None]
        back[at[inside]] = before + np.flatnonzero(inside)
        before += at.size
        at = np.minimum(at, ends[documents, None] - 1)
        groups.append((torch.tensor(at, device=device), own[documents].tolist()))
    return groups, torch.tensor(back, device=device)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    seen: Tensor,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """softmax(scores) v with each step spelled out; `seen` says which keys each query sees."""
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)], -1)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    shares = torch.softmax(scores, -1, dtype=wide)[..., : k.shape[2]].to(q.dtype)
    return torch.nn.functional.dropout(shares, dropout) @ v


def _fits_native(q: Tensor, v: Tensor) -> bool:
    return q.dtype == torch.bfloat16 and q.shape[-1] == v.shape[-1] and q.shape[-1] % 32 == 0


def document_layout(lengths: list[int], before: int) -> Tensor:
    """`Document` of native/attention.h, a row each: where queries start, how many, where keys start, how many."""
    documents = []
    start = 0
    for number, length in enumerate(lengths):
        documents.append((start, length, start + number * before, length + before))
        start += length
    return torch.tensor(documents)


def _after_prefix(k: Tensor, v: Tensor, lengths: list[int], prefix: Prefix | None) -> tuple[Tensor, Tensor, int]:
    """Keys and values with the prefix before each document's own, and its length."""
    if prefix is None:
        return k, v, 0
    k, v = (
        torch.cat([part for document in whole.split(lengths, 2) for part in (own, document)], 2)
        for own, whole in zip(prefix, (k, v), strict=True)
    )
    return k, v, prefix[0].shape[2]


class _DocumentAttention(torch.autograd.Function):
    """The kernels of native/attention.h. Stores q, k, v and one number a token and head; scores are computed again."""

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
        q, k, v = (each if each.stride(2) == 1 else each.contiguous() for each in (q, k, v))
        out = q.new_empty(q.shape)
        log_sums = q.new_empty(q.shape[:2], dtype=torch.float32)
        seed = native.random_seed() if dropout else 0
        group = q.shape[1] // k.shape[1]
        ctx.shape = native.Shape(k.shape[1], group, q.shape[2], scale, window or 0, causal, dropout, seed)
        native.call_attention("attention", ctx.shape, documents, len(documents), q, k, v, out, log_sums)
        ctx.save_for_backward(q, k, v, documents, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, documents, log_sums = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(2) == 1 else grads[0].contiguous()
        to = [torch.empty(each.shape, dtype=each.dtype) for each in (q, k, v)]
        native.call_attention("attention_backward", ctx.shape, documents, len(documents), q, k, v, log_sums, grad, *to)
        return *to, None, None, None, None, None


def _mask(
    lengths: list[int],
    pack_any_order: int,
    window: int | None,
    causal: bool,
    prefix: Prefix | None,
    device: torch.device,
) -> Tensor | None:
    """Which keys each query may see, broadcast to (documents, heads, filled, prefix + filled) bool; None if the
    kernel's own causal mask, or none at all, says the same."""
    before = 0 if prefix is None else prefix[0].shape[2]
    reach = before + pack_any_order if window is None else window
    narrow = before + pack_any_order > reach
    at = torch.arange(pack_any_order, device=device)
    distance = at[:, None] - at[None, :]
    seen: Tensor | None = None
    if causal and (prefix is not None or narrow):
        seen = ((distance >= 0) & (distance < reach))[None, None]  # (1, 1, filled, filled)
    elif not causal and (narrow or any(length < pack_any_order for length in lengths)):
        seen = (at < torch.tensor(lengths, device=device)[:, None])[:, None, None]  # (documents, 1, 1, filled)
        # What stands behind a document's end sees itself, so that its softmax is of something.
        seen = (seen & (distance.abs() < reach)) | (distance == 0) if narrow else seen
    if seen is None or prefix is None:
        return seen
    near = at[:, None] + before - torch.arange(before, device=device) < reach  # (filled, prefix)
    seen = seen.expand(-1, -1, pack_any_order, -1)
    return torch.cat([near.expand(len(seen), 1, -1, -1), seen], -1)
