"""Weights in 4 and 8 bits are what the papers say and what bitsandbytes reads."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from tunesmith.ops.lora_linear import lora_linear, lora_linear_reference
from tunesmith.ops.quantized import (
    FP4_CODE,
    NF4_CODE,
    dequantize,
    dequantize_reference,
    quantize,
    quantized_linear,
)

FORMATS = [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True), ("int8", False)]
shapes = st.tuples(st.integers(1, 48), st.integers(1, 160))


@pytest.fixture(scope="module")
def bnb() -> Any:
    """bitsandbytes; its import takes seconds."""
    import bitsandbytes.functional

    return bitsandbytes.functional


def matrix(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_nf4_has_the_papers_code_points() -> None:
    """Dettmers et al. 2023, section 3 and appendix E: quantiles of N(0, 1), 8 for zero and above, 7 below, over their
    largest."""
    offset = 0.9677083
    above = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1]).tolist()
    below = [-value for value in norm.ppf(torch.linspace(offset, 0.5, 8)[:-1]).tolist()]
    points = torch.tensor(sorted([*above, 0.0, *below]))
    torch.testing.assert_close(torch.tensor(NF4_CODE), (points / points.max()).float(), atol=2e-6, rtol=0)


def test_fp4_has_the_values_of_a_float_with_two_bits_of_exponent_and_one_of_mantissa() -> None:
    """Normal values (1 + m/2) · 2^e for e of 0, −1, −2 over their largest, and one below for the smallest."""
    normal = sorted((1 + m / 2) * 2.0**e for e in (0, -1, -2) for m in (0, 1))
    expected = [value / normal[-1] for value in normal]
    found = sorted(value for value in FP4_CODE if value > 0.01)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-6, rtol=0)
    assert sorted(map(abs, FP4_CODE))[:2] == [0.0, 0.0]


@settings(deadline=None, max_examples=40)
@given(shape=shapes, form=st.sampled_from(FORMATS), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_fast_way_back_equals_the_definition_whatever_the_shape(
    shape: tuple[int, int], form: tuple[str, bool], dtype: torch.dtype
) -> None:
    held = quantize(matrix(shape), *form)  # type: ignore[arg-type]
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(
        dequantize(held, dtype), dequantize_reference(held, dtype), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(("form", "double"), FORMATS[:4])
def test_each_number_is_rounded_to_the_nearest_code_point_of_its_block(form: str, double: bool) -> None:
    weight = matrix((16, 128))
    held = quantize(weight, form, double)  # type: ignore[arg-type]
    code = torch.tensor(NF4_CODE if form == "nf4" else FP4_CODE)
    blocks = weight.view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = code[((blocks / scale)[..., None] - code).abs().argmin(-1)] * scale
    found = dequantize_reference(held, torch.float32).view(-1, 64)
    tolerance = 0.03 if double else 1e-5
    torch.testing.assert_close(found, nearest, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("form", "double"), FORMATS[:4])
def test_bitsandbytes_reads_the_same_numbers_from_the_same_bytes(form: str, double: bool, bnb: Any) -> None:
    weight = matrix((32, 256))
    held = quantize(weight, form, double)  # type: ignore[arg-type]
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=form, compress_statistics=double)
    assert torch.equal(held.codes, codes)
    torch.testing.assert_close(dequantize(held, torch.float32), bnb.dequantize_4bit(codes, state))


def test_int8_rows_are_those_of_bitsandbytes(bnb: Any) -> None:
    weight = matrix((24, 64))
    held = quantize(weight, "int8")
    codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
    assert (held.codes.int() - codes.int()).abs().max() <= 1, "half precision may round a tie the other way"
    torch.testing.assert_close(held.scales, scales, rtol=1e-3, atol=1e-3)


def test_double_quantization_holds_a_weight_in_four_and_an_eighth_bits() -> None:
    """4 + 8/64 + 32/(64 · 256) bits (Dettmers et al. 2023, section 3), and one mean."""
    weight = matrix((256, 1024))
    bits = {double: quantize(weight, "nf4", double).bytes * 8 / weight.numel() for double in (False, True)}
    assert bits[False] == 4.5
    assert bits[True] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=2e-3)


def test_a_weight_that_is_not_finite_is_refused_and_zeros_stay_zeros() -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantize(torch.full((2, 64), float("nan")), "nf4")
    for form, double in FORMATS:
        assert not dequantize(quantize(torch.zeros(3, 64), form, double), torch.float32).any()  # type: ignore[arg-type]


@settings(deadline=None, max_examples=30)
@given(shape=shapes, form=st.sampled_from(FORMATS), rows=st.integers(1, 9))
def test_a_product_with_quantized_weights_has_the_value_and_gradients_of_one_with_whole_ones(
    shape: tuple[int, int], form: tuple[str, bool], rows: int
) -> None:
    held = quantize(matrix(shape), *form)  # type: ignore[arg-type]
    whole = dequantize(held, torch.float32)
    x = matrix((rows, shape[1]), 1).requires_grad_()
    bias = matrix((1, shape[0]), 2)[0].requires_grad_()
    a, b = matrix((4, shape[1]), 3).requires_grad_(), matrix((shape[0], 4), 4).requires_grad_()
    seed = matrix((rows, shape[0]), 5)

    plain = quantized_linear(x[None], held, bias)
    expected = torch.nn.functional.linear(x[None], whole, bias)
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(
        torch.autograd.grad(plain, (x, bias), seed[None]),
        torch.autograd.grad(expected, (x, bias), seed[None]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)

    low = lora_linear(x, held, bias.detach(), a, b, 0.5)
    expected = lora_linear_reference(x, whole, bias.detach(), a, b, 0.5)
    torch.testing.assert_close(low, expected, rtol=1e-4, atol=1e-3)
    for mine, theirs in zip(
        torch.autograd.grad(low, (x, a, b), seed), torch.autograd.grad(expected, (x, a, b), seed), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
