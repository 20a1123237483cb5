"""Attention over paged caches on CUDA, in Triton: FlashAttention (Dao 2023) over the pages of Kwon et al. 2023.

FlashAttention's own libraries take pages of 256 tokens and no sinks, and PyTorch 2.11 passes them no table of pages.
These kernels take whatever `paged_attention_reference` takes, in fp32, bf16 and fp16.

A program computes a tile: consecutive tokens of one sequence, for heads that share keys and values. It visits the keys
from the first to the last, in blocks that begin at multiples of `BLOCK`, so its result does not depend on other tiles.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32
"""Keys that a program visits at once: a multiple of a page."""


@triton.jit
def _store(
    x, cache, tiles, pages, x_token, x_head, page_stride, head_stride, number_stride, token_stride,
    DIM: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Store one head's keys or values of a tile in its sequence's pages. Strides are in numbers."""
    tile = tiles + 4 * tl.program_id(0)
    head = tl.program_id(1)
    first, count, position = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    token = tl.arange(0, TOKENS)[:, None]
    number = tl.arange(0, PADDED)[None, :]
    real = (token < count) & (number < DIM)
    values = tl.load(x + (first + token) * x_token + head * x_head + number, mask=real, other=0.0)
    at = position + token
    page = tl.load(pages + tl.load(tile + 3) + at // PAGE, mask=token < count, other=0)
    place = page * page_stride + head * head_stride + number * number_stride + (at % PAGE) * token_stride
    tl.store(cache + place, values.to(cache.dtype.element_ty), mask=real)


@triton.jit
def _attend(
    q, keys, values, sinks, out, tiles, pages, q_token, q_head, out_token, out_head, scale, softcap,
    GROUP: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
    PADDED: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, PADDED_VALUE: tl.constexpr, PAGE: tl.constexpr,
    BLOCK: tl.constexpr, WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """A tile's attention, for `HEADS` of the `GROUP` heads that share keys and values. A row is a token's head."""
    tile = tiles + 4 * tl.program_id(0)
    kv_head = tl.program_id(1)
    first, count, position, table = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    row = tl.arange(0, ROWS)
    token = row // HEADS
    in_group = tl.program_id(2) * HEADS + row % HEADS
    head = kv_head * GROUP + in_group
    real = (token < count) & (token < TOKENS) & (in_group < GROUP)
    number = tl.arange(0, PADDED)
    queries = tl.load(
        q + (first + token)[:, None] * q_token + head[:, None] * q_head + number[None, :],
        mask=real[:, None] & (number[None, :] < DIM), other=0.0,
    )  # fmt: skip
    at = position + token
    if HAS_SINKS:  # a score without a value
        highest = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32)
        total = tl.full([ROWS], 1.0, tl.float32)
    else:
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
    value_number = tl.arange(0, PADDED_VALUE)
    sums = tl.zeros([ROWS, PADDED_VALUE], tl.float32)
    end = position + count
    begin = end * 0
    if WINDOW > 0:
        begin = tl.maximum(position - WINDOW + 1, 0) // BLOCK * BLOCK
    for block in range(begin, end, BLOCK):
        key = block + tl.arange(0, BLOCK)
        page = tl.load(pages + table + key // PAGE, mask=key < end, other=0)
        k = tl.load(
            keys + ((page * tl.num_programs(1) + kv_head) * DIM * PAGE + key % PAGE)[None, :] + number[:, None] * PAGE,
            mask=(key < end)[None, :] & (number < DIM)[:, None], other=0.0,
        )  # fmt: skip
        scores = tl.dot(queries, k, input_precision="ieee") * scale
        if HAS_SOFTCAP:
            scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)  # tanh
        seen = key[None, :] <= at[:, None]
        if WINDOW > 0:
            seen = seen & (at[:, None] - key[None, :] < WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        now = tl.maximum(highest, tl.max(scores, 1))
        safe = tl.where(now == float("-inf"), 0.0, now)  # no key seen yet
        kept = tl.exp(highest - safe)
        weights = tl.exp(scores - safe[:, None])
        total = total * kept + tl.sum(weights, 1)
        v = tl.load(
            values + ((page * tl.num_programs(1) + kv_head) * WIDTH * PAGE + key % PAGE * WIDTH)[:, None]
            + value_number[None, :],
            mask=(key < end)[:, None] & (value_number < VALUE_DIM)[None, :], other=0.0,
        )  # fmt: skip
        sums = sums * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        highest = now
    place = out + (first + token)[:, None] * out_token + head[:, None] * out_head + value_number[None, :]
    result = sums / tl.where(real, total, 1.0)[:, None]
    tl.store(place, result.to(out.dtype.element_ty), mask=real[:, None] & (value_number < VALUE_DIM)[None, :])


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    tiles: Tensor,
    tile: int,
    pages: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """`ops.paged_attention.paged_attention_reference`.

    Args:
        q, k, v, scale, window, softcap, sinks: as there.
        keys, values: of the `LayerCache`.
        tiles, tile, pages: `rows`, `tile` and `pages` of the `Layout`, on the device.

    Returns:
        (1, heads, tokens, value_dim).
    """
    (heads, rows, dim), (kv_heads, value_dim) = q.shape[1:], (v.shape[1], v.shape[3])
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (q, k, v))  # (tokens, heads, dim)
    q, k, v = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k, v))
    page, width = keys.shape[3], values.shape[3]
    for x, cache, strides in ((k, keys, (1, 2, 3)), (v, values, (1, 3, 2))):
        own_head, number, token = (cache.stride(axis) for axis in (strides[0], strides[1], strides[2]))
        _store[(len(tiles), kv_heads)](
            x, cache, tiles, pages, x.stride(0), x.stride(1), cache.stride(0), own_head, number, token,
            DIM=x.shape[2], PADDED=triton.next_power_of_2(x.shape[2]), TOKENS=tile, PAGE=page,
        )  # fmt: skip
    group = heads // kv_heads
    together = min(triton.next_power_of_2(group), 16 if tile == 1 else 4)
    out = q.new_empty(rows, heads, value_dim)
    _attend[(len(tiles), kv_heads, triton.cdiv(group, together))](
        q, keys, values, out if sinks is None else sinks, out, tiles, pages,
        q.stride(0), q.stride(1), out.stride(0), out.stride(1), scale, softcap or 1.0,
        GROUP=group, HEADS=together, TOKENS=tile, ROWS=max(16, tile * together), DIM=dim,
        PADDED=max(16, triton.next_power_of_2(dim)), VALUE_DIM=value_dim, WIDTH=width,
        PADDED_VALUE=max(16, triton.next_power_of_2(value_dim)), PAGE=page, BLOCK=BLOCK, WINDOW=window or 0,
        HAS_SOFTCAP=softcap is not None, HAS_SINKS=sinks is not None,
    )  # fmt: skip
    return out.transpose(0, 1)[None]
