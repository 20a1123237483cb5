"""The operations of the generation engine equal their references, and a row's bits do not depend on the other rows."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processors import processor, threads
from torch import Tensor

from tunesmith.ops import native
from tunesmith.ops.grouped_ia3 import Factors, RowFactors
from tunesmith.ops.grouped_lora import LoraWeights, RowProducts
from tunesmith.ops.packed_linear import PackedWeight, pack, packed_linear, packed_linear_reference, unpack
from tunesmith.ops.paged_attention import (
    PAGE,
    LayerCache,
    Layout,
    Part,
    paged_attention,
    paged_attention_reference,
)
from tunesmith.ops.quantized import dequantize_reference, quantize

some = settings(max_examples=40)
few = settings(max_examples=20)
built = pytest.mark.skipif(native.library() is None, reason="this machine has no C compiler to build the kernels with")

STORAGES = ["fp32", "bf16", "int8", "nf4", "nf4 double", "fp4", "fp4 double"]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


# Packed linear layers


def stored(shape: tuple[int, int], storage: str) -> tuple[PackedWeight, Tensor]:
    """A random matrix stored in that way, and its numbers."""
    weight = random(*shape)
    if storage == "bf16":
        weight = weight.bfloat16().float()
    if storage in ("fp32", "bf16"):
        return pack(weight), weight
    format, _, double = storage.partition(" ")
    quantized = quantize(weight, format, bool(double))  # type: ignore[arg-type]
    return pack(quantized), dequantize_reference(quantized, torch.float32)


@built
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 24, 25, 100])
def test_processors_without_avx512_compute_the_same_bits(storage: str, rows: int) -> None:
    """They take other tiles and other ways to expand codes, in the same order of sums."""
    weight, numbers = stored((71, 192), storage)
    x, bias = random(rows, 192, seed=1), random(71, seed=2)
    expected = packed_linear(x, weight, bias)
    with processor(lanes=8):
        assert torch.equal(packed_linear(x, weight, bias), expected)
    with processor(lanes=4):  # without fused products, each is rounded
        found = packed_linear(x, weight, bias)
    for each in (expected, found):
        torch.testing.assert_close(each, x @ numbers.T + bias, rtol=1e-4, atol=1e-4)


@built
@pytest.mark.parametrize("rank", [1, 2, 5, 8, 19])
@pytest.mark.parametrize("outputs", [7, 16, 53, 96])
def test_processors_without_avx512_add_the_same_adapters_products(rank: int, outputs: int) -> None:
    own = LoraWeights(random(rank, 50, seed=1), random(rank, outputs, seed=2), 0.7)
    products = RowProducts([(first, count, [own]) for first, count in ((0, 1), (2, 9), (11, 4))])
    x = random(16, 50, seed=3)
    found = {}
    for count in (16, 8, 4):
        found[count] = torch.ones(16, outputs)
        with processor(lanes=count):
            products.add(0, x, found[count])
    expected = torch.ones(16, outputs)
    products.add_reference(0, x, expected)
    assert torch.equal(found[8], found[16])
    for each in found.values():
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_int8", [False, True])
def test_processors_without_avx512_attend_to_the_same_bits(dtype: torch.dtype, in_int8: bool) -> None:
    sequences = Sequences([1, 40, 17], heads=6, kv_heads=2, dim=24, value_dim=40, dtype=dtype)
    pages = [[0], [3, 1, 5], [2, 4]]
    batch = [[(0, 0, 1), (1, 0, 40), (2, 0, 17)]]
    found = {}
    for count in (16, 8, 4):
        with processor(lanes=count):
            found[count] = sequences.attend(sequences.cache(6, in_int8), pages, batch, scale=0.2)
    for own, narrow, plain in zip(*found.values(), strict=True):
        assert torch.equal(own, narrow)
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)


shapes = st.tuples(st.integers(1, 70), st.sampled_from([1, 5, 63, 64, 128, 129, 192, 320]))


@some
@given(
    rows=st.integers(0, 110),
    shape=shapes,
    storage=st.sampled_from(STORAGES),
    biased=st.booleans(),
    apart=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_packed_linear_equals_the_reference(
    rows: int, shape: tuple[int, int], storage: str, biased: bool, apart: int, dtype: torch.dtype
) -> None:
    weight, _ = stored(shape, storage)
    x = random(rows, shape[1] + apart, seed=1, dtype=dtype)[:, apart:]
    bias = random(shape[0], seed=2) if biased else None
    out = packed_linear(x, weight, bias)
    assert out.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out, packed_linear_reference(x, weight, bias), rtol=tolerance, atol=10 * tolerance)


def test_packed_linear_reads_columns_that_are_apart() -> None:
    weight, numbers = stored((9, 64), "fp32")
    x = random(64, 7).T
    assert x.stride(1) != 1
    torch.testing.assert_close(packed_linear(x, weight), x @ numbers.T, rtol=1e-5, atol=1e-5)


@some
@given(shape=shapes, storage=st.sampled_from(STORAGES))
def test_packing_keeps_each_number_exactly(shape: tuple[int, int], storage: str) -> None:
    weight, numbers = stored(shape, storage)
    assert weight.shape == shape
    # int8's numbers are code × (scale / 127) here, and (code × scale) / 127 in the definition: one rounding apart
    torch.testing.assert_close(unpack(weight), numbers, rtol=2e-7 if storage == "int8" else 0, atol=0)


def test_weights_are_stored_as_narrow_as_their_numbers_allow() -> None:
    exact = random(40, 64).bfloat16()
    for weight in (exact, exact.float(), exact.half()):
        assert pack(weight).stored == "bf16"
    almost = exact.float()
    almost[3, 5] += 1e-4
    assert pack(almost).stored == "fp32"
    assert pack(quantize(almost, "int8")).stored == "int8"
    assert pack(quantize(almost, "nf4")).stored == "four bits"
    assert pack(quantize(random(40, 65), "nf4")).stored in ("bf16", "fp32"), "a block crosses the rows"
    sizes = {name: stored((64, 128), name)[0].bytes for name in ("fp32", "bf16", "int8", "nf4")}
    assert sizes == {
        "fp32": 4 * 64 * 128, "bf16": 2 * 64 * 128, "int8": 64 * 128 + 4 * 64, "nf4": 64 * 128 // 2 + 4 * 64 * 2
    }  # fmt: skip


@built
@few
@given(
    storage=st.sampled_from(STORAGES),
    outputs=st.integers(1, 70),
    inputs=st.sampled_from([64, 320]),
    order=st.permutations(range(110)),
    count=st.integers(1, 110),
)
def test_a_rows_product_has_the_same_bits_whatever_the_other_rows_are(
    storage: str, outputs: int, inputs: int, order: list[int], count: int
) -> None:
    weight, _ = stored((outputs, inputs), storage)
    x, bias = random(110, inputs, seed=1), random(outputs, seed=2)
    alone = torch.cat([packed_linear(row[None], weight, bias) for row in x])
    chosen = torch.tensor(order[:count])
    assert torch.equal(packed_linear(x[chosen], weight, bias), alone[chosen])
    with threads(1):
        assert torch.equal(packed_linear(x[chosen], weight, bias), alone[chosen])


# Attention over pages


class Sequences:
    """Queries, keys and values of several sequences."""

    def __init__(
        self, lengths: Sequence[int], heads: int, kv_heads: int, dim: int, value_dim: int, dtype: torch.dtype
    ) -> None:
        self.lengths = lengths
        self.q = [random(1, heads, length, dim, seed=number, dtype=dtype) for number, length in enumerate(lengths)]
        self.k = [
            random(1, kv_heads, length, dim, seed=99 + number, dtype=dtype) for number, length in enumerate(lengths)
        ]
        self.v = [
            random(1, kv_heads, length, value_dim, seed=199 + number, dtype=dtype)
            for number, length in enumerate(lengths)
        ]

    def double(self) -> "Sequences":
        """The same numbers in float64."""
        wide = copy(self)
        wide.q, wide.k, wide.v = ([tensor.double() for tensor in own] for own in (self.q, self.k, self.v))
        return wide

    def cache(self, pages: int, in_int8: bool = False, garbage: float = 0.0) -> LayerCache:
        cache = LayerCache.empty(pages, self.k[0], self.v[0], in_int8)
        if garbage:
            for part in (cache.keys, cache.values, cache.key_scales, cache.value_scales):
                if part is not None:
                    part.copy_(garbage * random(*part.shape, seed=7))
        return cache

    def attend(
        self,
        cache: LayerCache,
        pages: Sequence[Sequence[int]],
        batches: Sequence[Sequence[tuple[int, int, int]]],
        attend: Any = paged_attention,
        **options: Any,
    ) -> list[Tensor]:
        """Each sequence's outputs (1, heads, tokens, value_dim).

        Args:
            cache: of the layer.
            pages: of each sequence.
            batches: each with parts: the number of a sequence, and its tokens from one to another.
        """
        outs: list[list[Tensor]] = [[] for _ in self.lengths]
        for batch in batches:
            layout = Layout([Part(end - first, first, pages[number]) for number, first, end in batch])
            q, k, v = (
                torch.cat([tensors[number][:, :, first:end] for number, first, end in batch], 2)
                for tensors in (self.q, self.k, self.v)
            )
            out = attend(q, k, v, cache, layout, **options)
            start = 0
            for number, first, end in batch:
                outs[number].append(out[:, :, start : start + end - first])
                start += end - first
        return [torch.cat(parts, 2) for parts in outs]


@st.composite
def shapes_of_attention(draw: Any) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    dim = draw(st.sampled_from([3, 8, 16, 20, 33]))
    return {
        "heads": kv_heads * draw(st.sampled_from([1, 2, 4])),
        "kv_heads": kv_heads,
        "dim": dim,
        "value_dim": draw(st.sampled_from([dim, 7, 16, 24])),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16])),
    }


@st.composite
def options_of_attention(draw: Any, heads: int) -> dict[str, Any]:
    return {
        "scale": draw(st.sampled_from([0.1, 0.35, 1.0])),
        "window": draw(st.sampled_from([None, 1, 5, 16, 23])),
        "softcap": draw(st.sampled_from([None, 1.0, 30.0])),
        "sinks": random(heads, seed=5) if draw(st.booleans()) else None,
    }


def scattered(draw: Any, lengths: Sequence[int]) -> tuple[int, list[list[int]]]:
    """How many pages there are, and the pages of each sequence anywhere among them."""
    needed = [-(-length // PAGE) for length in lengths]
    total = sum(needed) + 2
    order = draw(st.permutations(range(total)))
    return total, [[order.pop() for _ in range(count)] for count in needed]


def in_pieces(draw: Any, lengths: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """Batches in which each sequence is computed in pieces, some of them beside those of other sequences."""
    cuts = []
    for number, length in enumerate(lengths):
        ends = sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=3)) | {length})
        cuts.append([(number, first, end) for first, end in zip([0, *ends], ends, strict=False) if first < end])
    batches: list[list[tuple[int, int, int]]] = []
    while any(cuts):
        waiting = [number for number, own in enumerate(cuts) if own]
        members = draw(st.permutations(waiting))[: draw(st.integers(1, len(waiting)))]
        batches.append([cuts[number].pop(0) for number in members])
    return batches


@some
@given(
    data=st.data(),
    shape=shapes_of_attention(),
    lengths=st.lists(st.integers(1, 75), min_size=1, max_size=3),
    in_int8=st.booleans(),
)
def test_paged_attention_equals_the_reference_in_float64(
    data: Any, shape: dict[str, Any], lengths: list[int], in_int8: bool
) -> None:
    sequences = Sequences(lengths, **shape)
    options = data.draw(options_of_attention(shape["heads"]))
    total, pages = scattered(data.draw, lengths)
    batches = in_pieces(data.draw, lengths)
    ours = sequences.attend(sequences.cache(total, in_int8), pages, batches, **options)
    whole = [[(number, 0, length)] for number, length in enumerate(lengths)]
    wide = sequences.double()
    exact = wide.attend(wide.cache(total, in_int8), pages, whole, paged_attention_reference, **options)
    tolerance = 2e-5 if shape["dtype"] == torch.float32 else 2e-2
    for out, expected in zip(ours, exact, strict=True):
        assert out.dtype == shape["dtype"]
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@built
@some
@given(
    data=st.data(),
    shape=shapes_of_attention(),
    lengths=st.lists(st.integers(1, 75), min_size=2, max_size=4),
    in_int8=st.booleans(),
)
def test_attention_has_the_same_bits_in_pieces_in_other_pages_and_beside_others(
    data: Any, shape: dict[str, Any], lengths: list[int], in_int8: bool
) -> None:
    """Unused places of the pages hold other finite numbers each time."""
    sequences = Sequences(lengths, **shape)
    options = data.draw(options_of_attention(shape["heads"]))
    outs = []
    for garbage in (0.0, 1.0, -1e3):
        total, pages = scattered(data.draw, lengths)
        batches = in_pieces(data.draw, lengths)
        with threads(data.draw(st.sampled_from([1, 2]))):
            outs.append(sequences.attend(sequences.cache(total, in_int8, garbage), pages, batches, **options))
    for other in outs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(outs[0], other, strict=True))


def test_a_cache_has_one_place_for_each_token_and_knows_its_bytes() -> None:
    sequences = Sequences([20], 2, 2, 4, 5, torch.float32)
    cache = sequences.cache(3)
    assert cache.bytes_per_page == 4 * 2 * PAGE * (4 + 16)
    cache.store([2, 0], 0, sequences.k[0], sequences.v[0])
    assert torch.equal(cache.keys[2, :, :, 3], sequences.k[0][0, :, 3])
    assert torch.equal(cache.values[0, :, 1, :5], sequences.v[0][0, :, 17])
    assert not cache.keys[1].any()
    narrow = sequences.cache(3, in_int8=True)
    assert narrow.bytes_per_page == 2 * PAGE * (4 + 16) + 4 * 2 * 2 * PAGE


@built
@some
@given(shape=shapes_of_attention(), size=st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 1e4]))
def test_a_cache_in_int8_holds_each_token_of_each_head_to_a_code_of_its_largest(
    shape: dict[str, Any], size: float
) -> None:
    sequences = Sequences([20], **shape)
    sequences.k[0].mul_(size)
    cache, expected = sequences.cache(2, in_int8=True), sequences.cache(2, in_int8=True)
    expected.store([1, 0], 0, sequences.k[0], sequences.v[0])
    sequences.attend(cache, [[1, 0]], [[(0, 0, 20)]], scale=1.0)
    for ours, theirs in zip(cache._parts, expected._parts, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
    keys, values = cache.read([1, 0], torch.float32)
    for found, own in ((keys, sequences.k[0]), (values[..., : shape["value_dim"]], sequences.v[0])):
        difference = (found[:, :, :20] - own.float()).abs()
        assert (difference <= own.float().abs().amax(-1, keepdim=True) / 254 * 1.0001 + 1e-30).all()


# LoRA adapters of rows


def lora(rank: int, inputs: int, outputs: int, seed: int) -> LoraWeights:
    return LoraWeights(random(rank, inputs, seed=seed), random(rank, outputs, seed=seed + 1), 0.5 + seed)


@st.composite
def adapted_rows(draw: Any) -> tuple[int, list[tuple[int, int, LoraWeights | None]], int, int]:
    """How many rows, which have an adapter, and the layer's inputs and outputs."""
    inputs, outputs = draw(st.sampled_from([1, 16, 37, 64])), draw(st.sampled_from([1, 8, 33]))
    shelf = [None, *(lora(draw(st.integers(1, 9)), inputs, outputs, seed) for seed in range(3))]
    spans, at = [], 0
    for _ in range(draw(st.integers(1, 5))):
        at += draw(st.integers(0, 3))
        count = draw(st.integers(1, 6))
        spans.append((at, count, draw(st.sampled_from(shelf))))
        at += count
    return at + draw(st.integers(0, 3)), spans, inputs, outputs


@some
@given(case=adapted_rows())
def test_each_row_gets_the_product_of_its_own_adapter(
    case: tuple[int, list[tuple[int, int, LoraWeights | None]], int, int],
) -> None:
    rows, spans, inputs, outputs = case
    x, y = random(rows, inputs, seed=3), random(rows, outputs, seed=4)
    adapters = RowProducts([(first, count, [None, weights]) for first, count, weights in spans])
    out, expected = y.clone(), y.clone()
    adapters.add(1, x, out)
    adapters.add_reference(1, x, expected)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    with_adapter = torch.zeros(rows, dtype=torch.bool)
    for first, count, weights in spans:
        with_adapter[first : first + count] = weights is not None
        for row in range(first, first + count):
            alone = y[row : row + 1].clone()
            RowProducts([(0, 1, [None, weights])]).add(1, x[row : row + 1], alone)
            assert native.library() is None or torch.equal(out[row : row + 1], alone)
    assert torch.equal(out[~with_adapter], y[~with_adapter])
    before = out.clone()
    adapters.add(0, x, out)  # a layer that no adapter changes
    assert torch.equal(out, before)


def test_the_product_is_the_papers_formula() -> None:
    """Hu et al. 2021, eq. 3: y += α / r · B A x."""
    weights, x, y = lora(3, 5, 4, seed=1), random(1, 5), random(1, 4)
    expected = y + weights.scale * (x @ weights.a.T) @ weights.b
    RowProducts([(0, 1, [weights])]).add(0, x, y)
    torch.testing.assert_close(y, expected)
    assert weights.bytes == 4 * 3 * (5 + 4)


def test_adapters_are_added_to_rows_in_bf16_and_to_rows_that_are_apart() -> None:
    weights, x = lora(3, 16, 8, seed=0), random(4, 16)
    expected = 1.0 + weights.scale * (x @ weights.a.T) @ weights.b
    narrow = torch.ones(4, 8, dtype=torch.bfloat16)
    RowProducts([(0, 4, [weights])]).add(0, x, narrow)
    torch.testing.assert_close(narrow.float(), expected, rtol=2e-2, atol=2e-2)
    apart = torch.ones(4, 16)[:, ::2]
    RowProducts([(0, 4, [weights])]).add(0, x, apart)
    torch.testing.assert_close(apart, expected)
    RowProducts([]).add(0, x, apart)
    torch.testing.assert_close(apart, expected)


# IA3 factors of rows


@some
@given(data=st.data(), sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_each_row_is_scaled_by_the_factors_of_its_own_adapter(data: Any, sizes: tuple[int, int]) -> None:
    """Liu et al. 2022, eq. 1, in float64: y = l_out ⊙ ((l_in ⊙ x) Wᵀ), exactly, since a product is rounded once."""
    inputs, outputs = sizes
    both = Factors(random(inputs, seed=1), random(outputs, seed=2))
    shelf = [{}, {1: both}, {1: Factors(inputs=both.inputs)}, {0: both, 1: Factors(outputs=both.outputs)}]
    own = data.draw(st.lists(st.sampled_from(shelf), min_size=1, max_size=8))
    x, y = random(len(own), inputs, seed=3), random(len(own), outputs, seed=4)
    factors = RowFactors([(row, 1, each) for row, each in enumerate(own)])
    before, out = x.clone(), y.clone()
    scaled = factors.scaled_inputs(1, x)
    factors.scale_outputs(1, out)
    assert torch.equal(x, before), "other layers read it too"
    for row, each in enumerate(own):
        layer = each.get(1, Factors())
        for found, given_, factor in ((scaled[row], x[row], layer.inputs), (out[row], y[row], layer.outputs)):
            exact = given_.double() * (1 if factor is None else factor.double())
            assert torch.equal(found, exact.float())


def test_factors_scale_consecutive_rows_also_in_bf16_and_say_whether_they_do_anything() -> None:
    factors = Factors(outputs=torch.tensor([2.0, 0.5]))
    y = torch.ones(4, 2, dtype=torch.bfloat16)
    rows = RowFactors([(1, 2, {7: factors})])
    rows.scale_outputs(7, y)
    assert y.tolist() == [[1, 1], [2, 0.5], [2, 0.5], [1, 1]]
    rows.scale_outputs(3, y)
    assert rows.scaled_inputs(7, y) is y
    assert rows
    assert not RowFactors([(0, 4, {})])
    assert factors.has_effect
    assert not Factors(torch.ones(3), torch.ones(2)).has_effect
    assert (factors.bytes, Factors(torch.ones(3), torch.ones(2)).bytes) == (8, 20)
