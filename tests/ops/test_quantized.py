"""Weights in 4 and 8 bits follow the papers and are compatible with bitsandbytes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from tunesmith.ops import native
from tunesmith.ops.lora_linear import lora_linear, lora_linear_reference
from tunesmith.ops.quantized import (
    FP4_CODE,
    NF4_CODE,
    dequantize,
    dequantize_reference,
    empty_quantized,
    quantize,
    quantized_linear,
)

FORMATS = [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True), ("int8", False)]
shapes = st.tuples(st.integers(1, 48), st.integers(1, 160))


@pytest.fixture(scope="module")
def bnb() -> Any:
    """bitsandbytes, imported once, since the import takes seconds."""
    import bitsandbytes.functional

    return bitsandbytes.functional


def matrix(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_nf4_has_the_papers_code_points() -> None:
    """Dettmers et al. 2023, section 3 and appendix E: quantiles of N(0, 1), 8 for zero and above, 7 below, divided
    by the largest."""
    offset = 0.9677083
    above = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1]).tolist()
    below = [-value for value in norm.ppf(torch.linspace(offset, 0.5, 8)[:-1]).tolist()]
    points = torch.tensor(sorted([*above, 0.0, *below]))
    torch.testing.assert_close(torch.tensor(NF4_CODE), (points / points.max()).float(), atol=2e-6, rtol=0)


def test_fp4_has_the_values_of_a_float_with_2_exponent_bits_and_1_mantissa_bit() -> None:
    """Normal values (1 + m/2) · 2^e for e = 0, −1, −2, divided by the largest, and one subnormal value."""
    normal = sorted((1 + m / 2) * 2.0**e for e in (0, -1, -2) for m in (0, 1))
    expected = [value / normal[-1] for value in normal]
    actual = sorted(value for value in FP4_CODE if value > 0.01)
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), atol=1e-6, rtol=0)
    assert sorted(map(abs, FP4_CODE))[:2] == [0.0, 0.0]


@settings(max_examples=40)
@given(shape=shapes, format=st.sampled_from(FORMATS), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_dequantize_equals_the_reference_for_any_shape(
    shape: tuple[int, int], format: tuple[str, bool], dtype: torch.dtype
) -> None:
    quantized = quantize(matrix(shape), *format)  # type: ignore[arg-type]
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(
        dequantize(quantized, dtype), dequantize_reference(quantized, dtype), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(("format", "double"), FORMATS[:4])
def test_each_number_is_rounded_to_the_nearest_code_point_of_its_block(format: str, double: bool) -> None:
    weight = matrix((16, 128))
    quantized = quantize(weight, format, double)  # type: ignore[arg-type]
    code = torch.tensor(NF4_CODE if format == "nf4" else FP4_CODE)
    blocks = weight.view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = code[((blocks / scale)[..., None] - code).abs().argmin(-1)] * scale
    actual = dequantize_reference(quantized, torch.float32).view(-1, 64)
    tolerance = 0.03 if double else 1e-5
    torch.testing.assert_close(actual, nearest, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("format", "double"), FORMATS[:4])
def test_bitsandbytes_has_the_same_bytes_and_values(format: str, double: bool, bnb: Any) -> None:
    weight = matrix((32, 256))
    quantized = quantize(weight, format, double)  # type: ignore[arg-type]
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=format, compress_statistics=double)
    assert torch.equal(quantized.codes, codes)
    torch.testing.assert_close(dequantize(quantized, torch.float32), bnb.dequantize_4bit(codes, state))


def test_int8_rows_equal_those_of_bitsandbytes(bnb: Any) -> None:
    weight = matrix((24, 64))
    quantized = quantize(weight, "int8")
    codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
    assert (quantized.codes.int() - codes.int()).abs().max() <= 1, "half precision may round a tie the other way"
    torch.testing.assert_close(quantized.scales, scales, rtol=1e-3, atol=1e-3)


def test_double_quantization_needs_4_127_bits_per_weight() -> None:
    """4 + 8/64 + 32/(64 · 256) bits (Dettmers et al. 2023, section 3), plus the mean of the scales."""
    weight = matrix((256, 1024))
    bits = {double: quantize(weight, "nf4", double).bytes * 8 / weight.numel() for double in (False, True)}
    assert bits[False] == 4.5
    assert bits[True] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=2e-3)


def test_int8_has_no_scales_of_blocks_to_quantize_again() -> None:
    weight = matrix((24, 64))
    plain, double = (quantize(weight, "int8", double) for double in (False, True))
    assert double.scale_offset is double.scale_scales is None
    assert (double.scales.dtype, double.scales.shape) == (torch.float32, (24,))
    assert torch.equal(dequantize(plain, torch.float32), dequantize(double, torch.float32))
    assert empty_quantized((24, 64), "int8", True).bytes == double.bytes


@pytest.mark.skipif(native.library() is None, reason="this machine has no C compiler to build the kernels with")
def test_a_kernel_that_is_only_reported_has_a_scale_for_each_block() -> None:
    """A plan reports kernels instead of running them, and times them later with tensors of the same shapes."""
    quantized = quantize(matrix((32, 256)), "nf4", double_quantization=True)
    reported: list[tuple[str, tuple[Any, ...]]] = []
    with native.report_instead_of_calling(lambda name, arguments: reported.append((name, arguments))):
        dequantize(quantized, torch.float32)
    ((name, (_, scales, *_)),) = reported
    assert name == "four_bits_fp32"
    assert (scales.shape, scales.dtype) == ((32 * 256 // 64,), torch.float32)


def test_non_finite_weight_is_refused_and_zeros_stay_zeros() -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantize(torch.full((2, 64), float("nan")), "nf4")
    for format, double in FORMATS:
        assert not dequantize(quantize(torch.zeros(3, 64), format, double), torch.float32).any()  # type: ignore[arg-type]


@settings(max_examples=30)
@given(shape=shapes, format=st.sampled_from(FORMATS), rows=st.integers(1, 9))
def test_quantized_linear_and_its_gradients_equal_those_of_full_weights(
    shape: tuple[int, int], format: tuple[str, bool], rows: int
) -> None:
    quantized = quantize(matrix(shape), *format)  # type: ignore[arg-type]
    full = dequantize(quantized, torch.float32)
    x = matrix((rows, shape[1]), 1).requires_grad_()
    bias = matrix((1, shape[0]), 2)[0].requires_grad_()
    a, b = matrix((4, shape[1]), 3).requires_grad_(), matrix((shape[0], 4), 4).requires_grad_()
    grad = matrix((rows, shape[0]), 5)

    plain = quantized_linear(x[None], quantized, bias)
    expected = torch.nn.functional.linear(x[None], full, bias)
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(
        torch.autograd.grad(plain, (x, bias), grad[None]),
        torch.autograd.grad(expected, (x, bias), grad[None]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    low = lora_linear(x, quantized, bias.detach(), a, b, 0.5)
    expected = lora_linear_reference(x, full, bias.detach(), a, b, 0.5)
    torch.testing.assert_close(low, expected, rtol=1e-4, atol=1e-3)
    for ours, theirs in zip(
        torch.autograd.grad(low, (x, a, b), grad), torch.autograd.grad(expected, (x, a, b), grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
