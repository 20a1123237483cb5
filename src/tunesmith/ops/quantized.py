"""Frozen weights in 4 or 8 bits, with one scale per block, dequantized just before each matmul.

4 bits (Dettmers et al. 2023, section 3): each block of 64 numbers is divided by its largest magnitude, and each number
is rounded to the nearest of 16 code points. NF4's code points are quantiles of a normal distribution; FP4's are the
values of a float with two exponent bits and one mantissa bit. Double quantization stores the scales in 8 bits: their
mean is subtracted, and blocks of 256 scales use bitsandbytes' dynamic code (Dettmers et al. 2022, section 1.3).
8 bits (Dettmers et al. 2022b, section 2.1): each row is divided by its largest magnitude and rounded to n / 127.

The byte layout is that of bitsandbytes. Its kernels quantize everywhere, and dequantize on CUDA; on a CPU the native
kernels dequantize, if they are built.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from tunesmith.ops import native

Format = Literal["int8", "nf4", "fp4"]

BLOCK = 64
"""Numbers that share a scale in 4 bits (Dettmers et al. 2023, section 3)."""

SCALE_BLOCK = 256
"""Scales that share a scale in double quantization (same section)."""

# Appendix E of Dettmers et al. 2023, in fp32.
NF4_CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# Sign, two exponent bits, one mantissa bit: 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4 of the block's largest magnitude.
_FP4_MAGNITUDES = (0.0, 0.0052083333, 0.6666667, 1.0, 0.3333333, 0.5, 0.16666667, 0.25)
FP4_CODE = (*_FP4_MAGNITUDES, *(-value for value in _FP4_MAGNITUDES))


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized (out, in) matrix.

    Attributes:
        format: int8, nf4 or fp4.
        shape: (out, in).
        codes: nf4, fp4: uint8 (⌈out × in / 2⌉, 1), two numbers per byte, the first in the high half. int8: (out, in).
        scales: fp32 (blocks,), or their uint8 codes with double quantization; int8: fp32 (out,).
        scale_offset: fp32 (), the mean that is subtracted from the scales; None without double quantization.
        scale_scales: fp32 (⌈blocks / 256⌉,); None without double quantization.
    """

    format: Format
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor
    scale_offset: Tensor | None = None
    scale_scales: Tensor | None = None

    @property
    def bytes(self) -> int:
        parts = (self.codes, self.scales, self.scale_offset, self.scale_scales)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def to(self, device: torch.device) -> "Quantized":
        """A copy on another device."""
        parts = (self.codes, self.scales, self.scale_offset, self.scale_scales)
        return Quantized(self.format, self.shape, *(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]


def quantize(weight: Tensor, format: Format, double_quantization: bool = False) -> Quantized:
    """Quantize a matrix.

    Args:
        weight: (out, in), any float dtype.
        format: int8, nf4 or fp4.
        double_quantization: whether to quantize the scales of blocks too. int8 has a scale for each row, which stays in
            fp32 either way: it is 32 bits for a whole row of 8-bit numbers.

    Raises:
        ValueError: the matrix holds a value that is not finite.
    """
    shape = (weight.shape[0], weight.shape[1])
    # In pieces: the kernels' temporaries are several times as large as their input.
    if format == "int8":
        rows = [_quantize_rows(piece) for piece in weight.split(max(1, PIECE // shape[1]))]
        return Quantized(
            format, shape, torch.cat([codes for codes, _ in rows]), torch.cat([scales for _, scales in rows])
        )
    pieces = [_quantize_blocks(piece, format) for piece in weight.reshape(-1).split(PIECE)]
    codes, scales = torch.cat([codes for codes, _ in pieces]), torch.cat([scales for _, scales in pieces])
    if not double_quantization:
        return Quantized(format, shape, codes, scales)
    offset = scales.mean()
    scale_codes, state = _bnb().quantize_blockwise(scales - offset, blocksize=SCALE_BLOCK)
    return Quantized(format, shape, codes, scale_codes, offset, state.absmax)


def empty_quantized(shape: tuple[int, int], format: Format, double_quantization: bool = False) -> Quantized:
    """The result of `quantize` for a matrix of that shape, with uninitialized values."""
    if format == "int8":
        return Quantized(format, shape, torch.empty(shape, dtype=torch.int8), torch.empty(shape[0]))
    numbers = shape[0] * shape[1]
    blocks = -(-numbers // BLOCK)
    codes = torch.empty(-(-numbers // 2), 1, dtype=torch.uint8)
    if not double_quantization:
        return Quantized(format, shape, codes, torch.empty(blocks))
    scales = torch.empty(blocks, dtype=torch.uint8)
    return Quantized(format, shape, codes, scales, torch.empty(()), torch.empty(-(-blocks // SCALE_BLOCK)))


PIECE = BLOCK * 2**14
"""Numbers per call of a quantization kernel: a million, a multiple of `BLOCK`."""


def _quantize_blocks(piece: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """Codes (⌈n / 2⌉, 1) and scales (⌈n / 64⌉,) for n numbers."""
    _check_finite(piece)
    codes, state = _bnb().quantize_4bit(piece, blocksize=BLOCK, quant_type=format)
    return codes, state.absmax.float()


def _quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (rows, in) and scales (rows,)."""
    _check_finite(rows)
    wide = rows.float()
    scales = wide.abs().amax(1)
    codes = torch.round(wide * (127 / scales.clamp_min(torch.finfo(torch.float32).tiny))[:, None])
    return codes.to(torch.int8), scales


def _check_finite(weight: Tensor) -> None:
    if not torch.isfinite(weight).all():
        raise ValueError("it has a weight that is not finite")


def dequantize(weight: Quantized, dtype: torch.dtype) -> Tensor:
    """`dequantize_reference`, by the native kernels or by bitsandbytes."""
    if native.gives(dtype, weight.codes.device):
        return _dequantize_native(weight, dtype)
    if weight.format == "int8":
        return weight.codes.to(dtype).mul_((weight.scales / 127).to(dtype)[:, None])
    count = weight.shape[0] * weight.shape[1]
    # As rows of complete blocks: the CPU kernel is wrong if a block crosses the end of a row (bitsandbytes 0.50).
    flat = (count // BLOCK, BLOCK) if count % BLOCK == 0 else (1, count)
    state = _bnb().QuantState(
        absmax=expanded_scales(weight),
        shape=torch.Size(flat),
        code=code_points(weight.format, weight.codes.device),
        blocksize=BLOCK,
        quant_type=weight.format,
        dtype=dtype,
    )
    values: Tensor = _bnb().dequantize_4bit(weight.codes, state)
    return values.view(weight.shape)


def _dequantize_native(weight: Quantized, dtype: torch.dtype) -> Tensor:
    out = torch.empty(weight.shape, dtype=dtype)
    if weight.format == "int8":
        native.call("eight_bits", dtype, weight.codes, weight.scales, out, *weight.shape)
    else:
        code = code_points(weight.format, weight.codes.device)
        native.call("four_bits", dtype, weight.codes, expanded_scales(weight), code, out, out.numel())
    return out


def dequantize_reference(weight: Quantized, dtype: torch.dtype) -> Tensor:
    """The definition: code point × scale, in fp32, rounded once to `dtype`. `dequantize` is tested against this.

    Returns:
        (out, in) in `dtype`.
    """
    if weight.format == "int8":
        return (weight.codes.float() * weight.scales[:, None] / 127).to(dtype)
    packed = weight.codes.flatten()
    pairs = torch.stack([packed >> 4, packed & 15], 1).flatten()  # (out × in,), the high half first
    count = weight.shape[0] * weight.shape[1]
    points = code_points(weight.format, packed.device)[pairs[:count].long()]
    scales = weight.scales
    if weight.scale_scales is not None and weight.scale_offset is not None:
        dynamic = _dynamic_code(scales.device)[scales.long()]
        block = torch.arange(len(scales), device=scales.device) // SCALE_BLOCK
        scales = dynamic * weight.scale_scales[block] + weight.scale_offset
    block = torch.arange(count, device=packed.device) // BLOCK
    return (points * scales[block]).view(weight.shape).to(dtype)


def quantized_linear(x: Tensor, weight: Quantized, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, where W is dequantized for the matmul and freed after it, in the forward and in the backward pass.

    The backward pass needs only the quantized weight, which is kept anyway. Autograd over `dequantize` would keep the
    dequantized weight of every layer.

    Args:
        x: (..., in), in the dtype of the matmul.
        weight: (out, in), frozen.
        bias: (out,) or None; gets a gradient if it requires one.

    Returns:
        (..., out).
    """
    out: Tensor = _QuantizedLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], weight.shape[0])


class _QuantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Quantized, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return torch.nn.functional.linear(x, dequantize(weight, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad_x = grad @ dequantize(ctx.weight, grad.dtype) if ctx.needs_input_grad[0] else None
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias


def expanded_scales(weight: Quantized) -> Tensor:
    """The scale of each block (blocks,) in fp32, without double quantization."""
    if weight.scale_scales is None or weight.scale_offset is None:
        return weight.scales
    if not native.runs():  # only shapes matter here, and the library's operation takes milliseconds
        return torch.empty(len(weight.scales)) + weight.scale_offset
    scales: Tensor = _bnb().dequantize_blockwise(
        weight.scales, absmax=weight.scale_scales, code=_dynamic_code(weight.scales.device), blocksize=SCALE_BLOCK
    )
    return scales + weight.scale_offset


@cache
def code_points(format: str, device: torch.device) -> Tensor:
    """The value of each 4-bit code (16,) in fp32, for a scale of 1."""
    return torch.tensor(NF4_CODE if format == "nf4" else FP4_CODE, device=device)


@cache
def _dynamic_code(device: torch.device) -> Tensor:
    """(256,) fp32: bitsandbytes' signed dynamic map for 8 bits (Dettmers et al. 2022, section 1.3)."""
    code: Tensor = _bnb().create_dynamic_map().to(device)
    return code


@cache
def _bnb() -> ModuleType:
    """bitsandbytes, imported on first use, since the import is slow."""
    return import_module("bitsandbytes.functional")
