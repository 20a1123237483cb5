"""Linear layers for inference on a CPU, whose result for a row does not depend on the other rows.

A product of one row is limited by how fast the weights are read, so they are kept as narrow as they are stored: fp32
weights that are exact in bf16 (most models are published in it) are kept in bf16. The numbers of the result are those
of the fp32 weights in every case.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from tunesmith.ops import native
from tunesmith.ops.quantized import BLOCK, Quantized, code_points, dequantize_reference, expanded_scales

PANEL = 32
"""Outputs that are stored together; PANEL of native/packed.h."""

Stored = Literal["fp32", "bf16", "int8", "four bits"]
_STORED: tuple[Stored, ...] = ("fp32", "bf16", "int8", "four bits")  # the numbers of native/packed.h


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """An (out, in) matrix in panels of `PANEL` outputs, filled up with zeros.

    Attributes:
        stored: how its numbers are stored.
        shape: (out, in).
        codes: (panels, in, PANEL) fp32, bf16 or int8; four bits: uint8 (panels, in, PANEL / 2), which holds the code of
            output n in the low half of byte n, and of output n + 16 in the high half.
        scales: int8: fp32 (panels, PANEL); four bits: fp32 (panels, in / 64, PANEL); else None.
        points: four bits: fp32 (16,), the value of each code; else None.
    """

    stored: Stored
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor | None = None
    points: Tensor | None = None

    @property
    def bytes(self) -> int:
        parts = (self.codes, self.scales)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


def pack(weight: Tensor | Quantized) -> PackedWeight:
    """Store a matrix in panels, without changing its numbers.

    Args:
        weight: (out, in): fp32, bf16 or fp16, or quantized.
    """
    if isinstance(weight, Quantized) and weight.format == "int8":
        scales = pad(weight.scales, (0, -weight.shape[0] % PANEL)).view(-1, PANEL)
        return PackedWeight("int8", weight.shape, _panels(weight.codes), scales)
    if isinstance(weight, Quantized) and weight.shape[1] % BLOCK == 0:
        return _pack_four_bits(weight)
    values = dequantize_reference(weight, torch.float32) if isinstance(weight, Quantized) else weight.detach()
    narrow = _as_bf16(values)
    if narrow is not None:
        return PackedWeight("bf16", (values.shape[0], values.shape[1]), _panels(narrow))
    return PackedWeight("fp32", (values.shape[0], values.shape[1]), _panels(values.float()))


def _as_bf16(values: Tensor) -> Tensor | None:
    """The matrix in bf16; None if that would change a number. Of fp32 it is a view, since a model's weights are large:
    the upper half of each number, where the lower half is zero."""
    if values.dtype == torch.float32 and values.stride(1) == 1:
        lower, upper = values.view(torch.int16).unflatten(1, (-1, 2)).unbind(2)  # little-endian
        return None if lower.any() else upper.view(torch.bfloat16)
    narrow = values.to(torch.bfloat16)
    return narrow if torch.equal(narrow.to(values.dtype), values) else None


def packed_bytes(shape: tuple[int, int], stored: Stored) -> int:
    """`PackedWeight.bytes` of an (out, in) matrix that is stored so."""
    rows, inputs = -(-shape[0] // PANEL) * PANEL, shape[1]
    codes = {"fp32": 4 * inputs, "bf16": 2 * inputs, "int8": inputs, "four bits": inputs // 2}[stored]
    scales = {"int8": 4, "four bits": 4 * (inputs // BLOCK)}.get(stored, 0)
    return rows * (codes + scales)


def _pack_four_bits(weight: Quantized) -> PackedWeight:
    flat = weight.codes.flatten()
    codes = _panels(torch.stack([flat >> 4, flat & 15], 1).view(weight.shape))  # the first code is in the high half
    low, high = codes.split(PANEL // 2, -1)
    scales = _panels(expanded_scales(weight).view(weight.shape[0], -1))
    points = code_points(weight.format, weight.codes.device)
    return PackedWeight("four bits", weight.shape, low | high << 4, scales, points)


def _panels(matrix: Tensor) -> Tensor:
    """(out, in) as (panels, in, PANEL)."""
    missing = -matrix.shape[0] % PANEL
    filled = pad(matrix, (0, 0, 0, missing)) if missing else matrix
    return filled.view(-1, PANEL, matrix.shape[1]).transpose(1, 2).contiguous()


def unpack(weight: PackedWeight) -> Tensor:
    """The matrix (out, in) in fp32, a copy."""
    codes = weight.codes
    if weight.stored == "four bits":
        assert weight.scales is not None
        assert weight.points is not None
        points = weight.points[torch.cat([codes & 15, codes >> 4], -1).long()]
        panels = points * weight.scales.repeat_interleave(BLOCK, 1)
    elif weight.stored == "int8":
        assert weight.scales is not None
        panels = codes * (weight.scales / 127)[:, None]
    else:
        panels = codes.to(torch.float32, copy=True)
    return panels.transpose(1, 2).flatten(0, 1)[: weight.shape[0]]


def as_native(weight: PackedWeight) -> native.Packed:
    """The matrix as the kernels read it; valid as long as its tensors are."""
    return native.Packed(
        weight.codes.data_ptr(),
        None if weight.scales is None else weight.scales.data_ptr(),
        None if weight.points is None else weight.points.data_ptr(),
        _STORED.index(weight.stored),
        weight.shape[1],
        weight.shape[0],
    )


def packed_linear_reference(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """The definition, x Wᵀ + b in fp32. `packed_linear` is tested against this.

    Args:
        x: (rows, in), fp32 or bf16.
        weight: (out, in).
        bias: (out,) fp32, or None.

    Returns:
        (rows, out) in x's dtype.
    """
    return linear(x.float(), unpack(weight), bias).to(x.dtype)


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """`packed_linear_reference`, where each row's result is the same to the bit whatever the other rows are and however
    many. Sums are in fp32. No gradients."""
    if not native.gives(torch.float32, x.device):
        return packed_linear_reference(x, weight, bias)
    wide = x if x.dtype == torch.float32 else x.float()
    if wide.stride(1) != 1:
        wide = wide.contiguous()
    out = wide.new_empty(wide.shape[0], weight.shape[0])
    native.call_named("packed_linear", as_native(weight), wide, wide.stride(0), bias, out, len(wide))
    return out if x.dtype == torch.float32 else out.to(x.dtype)
