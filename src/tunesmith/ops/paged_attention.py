"""Attention over a paged cache of keys and values (Kwon et al. 2023, section 4.1), for sequences of any length.

A page holds `PAGE` tokens of one sequence, and a sequence's pages are anywhere in the cache. A batch has parts of
several sequences: a whole prompt, a piece of one, or a single new token. The batch's own keys and values are stored
first; each token then attends to its sequence's tokens up to itself.

The cache holds the numbers as they are, or in int8: each key and each value of a token and head by itself, symmetric
around zero, as multiples of 1/127 of its largest absolute number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.ops import cuda, native
from tunesmith.ops.document_attention import document_attention_reference

PAGE = 16
"""Tokens in a page; PAGE of native/paged.h."""

TILE = 16
"""Tokens of a prompt in a tile of paged_triton.py."""

_CPU = torch.device("cpu")

_WIDTH = 16
"""A value's numbers are filled up to a multiple of it."""

_LEAST_SCALE = 1e-30
"""Of numbers that are all zero; LEAST_SCALE of native/paged.h."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values.

    Attributes:
        keys: (pages, kv_heads, dim, PAGE).
        values: (pages, kv_heads, PAGE, value_dim rounded up to a multiple of 16).
        key_scales, value_scales: in int8: (pages, kv_heads, PAGE) fp32, what a code of 1 stands for; else None.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @classmethod
    def empty(cls, pages: int, key: Tensor, value: Tensor, in_int8: bool = False) -> "LayerCache":
        """A cache for keys and values such as these, (1, kv_heads, tokens, dim). Its memory is taken page by page, as
        it is used. It is zero, since a masked key is multiplied by zero."""
        width = -(-value.shape[3] // _WIDTH) * _WIDTH
        dtype = torch.int8 if in_int8 else key.dtype
        keys = _zeros((pages, key.shape[1], key.shape[3], PAGE), dtype, key.device)
        values = _zeros((pages, value.shape[1], PAGE, width), dtype, key.device)
        if not in_int8:
            return cls(keys, values)
        return cls(keys, values, *(_zeros((pages, key.shape[1], PAGE), torch.float32, key.device) for _ in range(2)))

    def store(self, pages: Sequence[int], position: int, k: Tensor, v: Tensor) -> None:
        """Store keys and values (1, kv_heads, tokens, dim) of a sequence with these pages, from that position on."""
        at = torch.arange(position, position + k.shape[2], device=k.device)
        page = torch.tensor(pages, device=k.device)[at // PAGE]
        keys, values = k[0].transpose(0, 1), v[0].transpose(0, 1)  # (tokens, kv_heads, dim)
        if self.key_scales is not None and self.value_scales is not None:
            keys, self.key_scales[page, :, at % PAGE] = _in_int8(keys)
            values, self.value_scales[page, :, at % PAGE] = _in_int8(values)
        self.keys[page, :, :, at % PAGE] = keys.to(self.keys.dtype)
        self.values[page, :, at % PAGE, : v.shape[3]] = values.to(self.values.dtype)

    def read(self, pages: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The keys (1, kv_heads, tokens, dim) and the values (1, kv_heads, tokens, width) in these pages."""
        at = torch.tensor(pages, device=self.keys.device)
        keys, values = self.keys[at].transpose(2, 3), self.values[at]  # (pages, kv_heads, PAGE, dim)
        if self.key_scales is not None and self.value_scales is not None:
            keys, values = keys * self.key_scales[at][..., None], values * self.value_scales[at][..., None]
        keys, values = (each.transpose(0, 1).flatten(1, 2)[None].to(dtype) for each in (keys, values))
        return keys, values

    def as_native(self) -> native.PagedCache:
        """The cache as the kernels read it; valid as long as its tensors are."""
        return native.PagedCache(*(None if part is None else part.data_ptr() for part in self._parts))

    @property
    def bytes_per_page(self) -> int:
        return sum(part[0].numel() * part.element_size() for part in self._parts if part is not None)

    @property
    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.keys, self.values, self.key_scales, self.value_scales


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive tokens of one sequence in a batch.

    Attributes:
        tokens: how many.
        position: how many tokens of the sequence are before them, in the cache.
        pages: the sequence's pages, in order, with room for these tokens.
    """

    tokens: int
    position: int
    pages: Sequence[int]


class Layout:
    """The parts of a batch, as the kernels read them.

    Args:
        parts: of different sequences.
        device: of the batch.
        tile: the most tokens of a row, to which parts are cut; None: a row is a part.

    Attributes:
        rows: (rows, 4) int64: first token in the batch, tokens, tokens before them, first of its pages in `pages`.
        tile: as above, or 1 if no part is longer.
        pages: (pages,) int64: of all parts, one after another.
    """

    def __init__(self, parts: Sequence[Part], device: torch.device = _CPU, tile: int | None = None) -> None:
        self.parts = parts
        longest = max((part.tokens for part in parts), default=1)
        self.tile = longest if tile is None or longest == 1 else tile
        rows, pages, first = list[tuple[int, int, int, int]](), list[int](), 0
        for part in parts:
            for start in range(0, part.tokens, self.tile):
                count = min(self.tile, part.tokens - start)
                rows.append((first + start, count, part.position + start, len(pages)))
            used = -(-(part.position + part.tokens) // PAGE)
            pages += part.pages[:used]
            first += part.tokens
        self.rows = torch.tensor(rows, device=device)
        self.pages = torch.tensor(pages, device=device)


def paged_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    layout: Layout,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The definition: each sequence by itself. `paged_attention` is tested against this.

    Args:
        q: (1, heads, tokens, dim): the batch's queries.
        k: (1, kv_heads, tokens, dim): its keys, which are stored in the cache.
        v: (1, kv_heads, tokens, value_dim): its values, which are stored in the cache.
        cache: of this layer.
        layout: which token belongs to which sequence.
        scale, window, softcap, sinks: as in `document_attention_reference`.

    Returns:
        (1, heads, tokens, value_dim).
    """
    outs, first = [], 0
    for part in layout.parts:
        end = part.position + part.tokens
        own = slice(first, first + part.tokens)
        cache.store(part.pages, part.position, k[:, :, own], v[:, :, own])
        keys, values = cache.read(part.pages[: -(-end // PAGE)], q.dtype)
        keys, values = keys[:, :, :end], values[:, :, :end, : v.shape[3]]
        before = torch.zeros(1, q.shape[1], part.position, q.shape[3], dtype=q.dtype, device=q.device)
        queries = torch.cat([before, q[:, :, own]], 2)
        out = document_attention_reference(queries, keys, values, [end], scale, window, softcap=softcap, sinks=sinks)
        outs.append(out[:, :, part.position :])
        first += part.tokens
    return torch.cat(outs, 2)


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    layout: Layout,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`paged_attention_reference`, by the native kernel or Triton's where there is one. In the native one, a token's
    result is the same to the bit whatever else is in the batch and however its sequence was cut into parts."""
    if cuda.has_paged(q, v, cache.keys):
        return cuda.paged_attention(
            q, k, v, cache.keys, cache.values, layout.rows, layout.tile, layout.pages, scale, window, softcap, sinks
        )
    if not native.takes(q, k, v):
        return paged_attention_reference(q, k, v, cache, layout, scale, window, softcap, sinks)
    rows = [_contiguous(tensor[0].transpose(0, 1)) for tensor in (q, k, v)]  # (tokens, heads, dim)
    out = q.new_empty(q.shape[2], q.shape[1], v.shape[3])
    shape = native_shape(k.shape[1], q.shape[1], q.shape[3], v.shape[3], scale, window, softcap)
    native.call(
        "paged_attention" if cache.key_scales is None else "paged_attention_int8", q.dtype, shape, layout.rows,
        len(layout.rows), layout.pages, *rows, cache.as_native(), None if sinks is None else sinks.float(), out,
    )  # fmt: skip
    return out.transpose(0, 1)[None]


def native_shape(
    kv_heads: int, heads: int, dim: int, value_dim: int, scale: float, window: int | None, softcap: float | None
) -> native.Paged:
    """The shape of the heads, and how they attend, as the kernels read it. Arguments are those of the reference."""
    return native.Paged(kv_heads, heads // kv_heads, dim, value_dim, scale, softcap or 0.0, window or 0)


def _in_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The codes (…, dim) of numbers (…, dim), and their scales (…) in fp32."""
    wide = rows.float()
    scales = (wide.abs().amax(-1) / 127).clamp_min(_LEAST_SCALE)
    return torch.round(wide * (1 / scales)[..., None]), scales


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On a CPU, the system hands out memory when it is first written; PyTorch's zeros would write all of it at
    once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, np.uint8)).view(dtype).view(shape)


def _contiguous(rows: Tensor) -> Tensor:
    return rows if rows.stride(2) == 1 else rows.contiguous()
