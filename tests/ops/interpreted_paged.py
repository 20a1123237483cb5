"""Compares the CUDA kernels of attention over pages, in Triton's interpreter, with the reference in float64.

A process of its own, since Triton reads TRITON_INTERPRET when it is first imported. The interpreter multiplies no bf16
matrices; tests/test_gpu.py does that.
"""

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.ops import paged_triton
from tunesmith.ops.paged_attention import PAGE, TILE, LayerCache, Layout, Part, paged_attention_reference


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (5, 1), (20, 1)]),
    dims=st.sampled_from([(3, 7), (16, 16), (33, 8), (64, 64)]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    window=st.sampled_from([None, 1, 5, 40]),
    softcap=st.sampled_from([None, 1.0, 30.0]),
    has_sinks=st.booleans(),
    parts=st.lists(
        st.tuples(st.sampled_from([1, 5, 16, 17, 40]), st.sampled_from([0, 1, 15, 16, 70])), min_size=1, max_size=3
    ),
    single=st.booleans(),
)
def compare(
    heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype, window: int | None,
    softcap: float | None, has_sinks: bool, parts: list[tuple[int, int]], single: bool,
) -> None:  # fmt: skip
    parts = [(1 if single else count, position) for count, position in parts]
    needed = [-(-(count + position) // PAGE) for count, position in parts]
    order = torch.randperm(sum(needed) + 1, generator=torch.Generator().manual_seed(1)).tolist()
    pages = [[order.pop() for _ in range(count)] for count in needed]
    layout = Layout(
        [Part(count, position, own) for (count, position), own in zip(parts, pages, strict=True)], tile=TILE
    )
    tokens = sum(count for count, _ in parts)
    q = random(1, heads[0], tokens, dims[0], seed=1, dtype=dtype)
    k, v = (random(1, heads[1], tokens, dim, seed=dim + 2, dtype=dtype) for dim in dims)
    cache = LayerCache.empty(sum(needed) + 1, k, v)
    for part in (cache.keys, cache.values):
        part.copy_(random(*part.shape, seed=4, dtype=dtype))
    wide = LayerCache(cache.keys.double(), cache.values.double())
    sinks = random(heads[0], seed=5, dtype=torch.float32) if has_sinks else None
    ours = paged_triton.paged_attention(
        q, k, v, cache.keys, cache.values, layout.rows, layout.tile, layout.pages, 0.35, window, softcap, sinks
    )
    wide_sinks = None if sinks is None else sinks.double()
    exact = paged_attention_reference(
        q.double(), k.double(), v.double(), wide, layout, 0.35, window, softcap, wide_sinks
    )
    tolerance = 2e-5 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(cache.keys.double(), wide.keys)
    assert torch.equal(cache.values.double(), wide.values)


if __name__ == "__main__":
    compare()
