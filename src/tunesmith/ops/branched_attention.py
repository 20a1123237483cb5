"""Attention over packed documents of which some continue others: a prompt once, and several completions of it.

A document that continues another sees all of that one's tokens, and what that one continues, before its own. So it has
the same result as in one text with them, and the shared beginning is computed once (a prefix tree, as in Cai et al.
2024, "Medusa", section 3.1.2, for whole texts).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from tunesmith.ops import native
from tunesmith.ops.document_attention import LENGTH_STEP, DocumentAttention, Prefix, attend, fits_native


def branched_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    parents: list[int],
    scale: float,
    window: int | None = None,
    prefix: Prefix | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The definition: each document by itself, after the keys and values of all that it continues.

    Args:
        q, k, v, lengths, scale, window, prefix, softcap, sinks: as in `document_attention_reference`. Documents are
            causal.
        parents: for each document, the index of the earlier one that it continues; -1: none.

    Returns:
        (1, heads, tokens, value_dim).
    """
    parts = [tensor.split(lengths, 2) for tensor in (q, k, v)]
    groups = q.shape[1] // k.shape[1]
    outs = []
    for number in range(len(lengths)):
        path = _path(parents, number)
        key, value = (torch.cat([part[each] for each in path], 2) for part in parts[1:])
        if prefix is not None:
            key, value = torch.cat([prefix[0], key], 2), torch.cat([prefix[1], value], 2)
        own, before = lengths[number], key.shape[2] - lengths[number]
        distance = torch.arange(own)[:, None] + before - torch.arange(before + own)
        seen = ((distance >= 0) & (distance < (before + own if window is None else window))).to(q.device)
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        outs.append(attend(parts[0][number], key, value, scale, seen, 0.0, softcap, sinks))
    return torch.cat(outs, 2)


def branched_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    parents: list[int],
    scale: float,
    window: int | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`branched_attention_reference` on packed keys and values.

    Each document's keys are gathered after those that it continues, `embedding`'s backward pass adds up the gradients
    of keys that several documents see. In bf16 and fp32 on a CPU, a native kernel handles the documents; otherwise
    PyTorch's kernel runs on documents padded to a multiple of `LENGTH_STEP`, those of the same shape in one batch.

    Args:
        q, k, v, lengths, parents, scale, window, prefix, softcap, sinks: as in `branched_attention_reference`.
        dropout: the share of attention probabilities to zero.

    Returns:
        (1, heads, tokens, value_dim).
    """
    before = 0 if prefix is None else prefix[0].shape[2]
    tree = _tree(tuple(lengths), tuple(parents), before)
    if prefix is not None:
        k, v = torch.cat([prefix[0], k], 2), torch.cat([prefix[1], v], 2)
    flat_k, flat_v = (tensor[0].transpose(0, 1).flatten(1) for tensor in (k, v))  # (prefix + tokens, kv_heads · dim)
    if native.takes(q, k, v) and fits_native(q, v) and softcap is None and sinks is None:
        gathered = torch.tensor(tree.keys, device=q.device)
        key, value = (
            embedding(gathered, flat).unflatten(1, (-1, tensor.shape[-1]))
            for flat, tensor in ((flat_k, k), (flat_v, v))
        )
        documents = torch.tensor(tree.documents)
        rows: Tensor = DocumentAttention.apply(
            q[0].transpose(0, 1), key, value, documents, scale, window, True, dropout
        )
        return rows.transpose(0, 1)[None]
    flat_q = q[0].transpose(0, 1).flatten(1)
    outs = []
    for group in tree.groups:
        at_q, at_k = (torch.tensor(at, device=q.device) for at in (group.queries, group.keys))
        query, key, value = (  # (documents, heads, length, dim)
            embedding(at, flat).unflatten(-1, (-1, tensor.shape[-1])).transpose(1, 2)
            for at, flat, tensor in ((at_q, flat_q, q), (at_k, flat_k, k), (at_k, flat_v, v))
        )
        starts = torch.tensor(group.starts, device=q.device)[:, None, None, None]
        columns = torch.arange(at_k.shape[1], device=q.device)
        at = starts + torch.arange(at_q.shape[1], device=q.device)[:, None]  # each query's place among the keys
        distance = at.clamp(max=at_k.shape[1] - 1) - columns  # padding sees a key too: softmax over none is undefined
        seen = (distance >= 0) & (distance < (at_k.shape[1] if window is None else window))
        if softcap is None and sinks is None:
            out = scaled_dot_product_attention(
                query, key, value, seen, dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        else:
            key, value = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (key, value))
            out = attend(query, key, value, scale, seen, dropout, softcap, sinks)
        outs.append(out.transpose(1, 2).flatten(2).flatten(0, 1))  # (documents · length, heads · value_dim)
    back = torch.tensor(tree.back, device=q.device)
    output: Tensor = embedding(back, torch.cat(outs)).unflatten(-1, (q.shape[1], -1)).transpose(0, 1)[None]
    return output


class _Group(NamedTuple):
    """Documents of the same padded shape.

    Attributes:
        queries: (documents, queries) the rows of their tokens; padding repeats the last one.
        keys: (documents, keys) the rows of what they see, in a row with the prefix before all documents.
        starts: (documents,) how many of the keys come before a document's own.
    """

    queries: NDArray[np.int64]
    keys: NDArray[np.int64]
    starts: NDArray[np.int64]


class _Tree(NamedTuple):
    """Where each document's keys are.

    Attributes:
        keys: all documents' keys, one document after the other, as rows of prefix and tokens.
        documents: (documents, 4) first query, query count, first key, key count: `Document` of native/attention.h.
        groups: for kernels that need one shape.
        back: (tokens,) each token's row in the concatenation of all groups.
    """

    keys: NDArray[np.int64]
    documents: NDArray[np.int64]
    groups: list[_Group]
    back: NDArray[np.int64]


@lru_cache(maxsize=4)
def _tree(lengths: tuple[int, ...], parents: tuple[int, ...], before: int) -> _Tree:
    """The same for all layers of a model. NumPy's arrays, since tensors may be fake ones in one call and not in the
    next."""
    starts = np.cumsum([0, *lengths])
    own = [np.arange(starts[number], starts[number + 1]) for number in range(len(lengths))]
    prefix = np.arange(before)
    keys = [
        np.concatenate([prefix, *(own[each] + before for each in _path(parents, number))])
        for number in range(len(lengths))
    ]
    ends = np.cumsum([0, *map(len, keys)])
    documents = np.array(
        [(starts[number], lengths[number], ends[number], len(keys[number])) for number in range(len(lengths))]
    )
    shapes: dict[tuple[int, int], list[int]] = {}
    for number, length in enumerate(lengths):
        shapes.setdefault((_padded(length), _padded(len(keys[number]))), []).append(number)
    groups = []
    back = np.empty(starts[-1], np.int64)
    filled = 0
    for (queries, seen), members in shapes.items():
        for place, number in enumerate(members):
            back[own[number]] = filled + place * queries + np.arange(lengths[number])
        filled += len(members) * queries
        groups.append(
            _Group(
                np.stack([own[number][np.minimum(np.arange(queries), lengths[number] - 1)] for number in members]),
                np.stack([keys[number][np.minimum(np.arange(seen), len(keys[number]) - 1)] for number in members]),
                np.array([len(keys[number]) - lengths[number] for number in members]),
            )
        )
    return _Tree(np.concatenate(keys), documents, groups, back)


def _path(parents: list[int] | tuple[int, ...], number: int) -> list[int]:
    """A document and all that it continues, the first one first."""
    path = [number]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]


def _padded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP
