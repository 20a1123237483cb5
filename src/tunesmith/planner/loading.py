"""Memory while a base's weights are loaded."""

from pathlib import Path

import torch

from tunesmith.config.base import Base
from tunesmith.models.load import locate, stored_dtype
from tunesmith.ops.quantized import PIECE
from tunesmith.planner.device import Device
from tunesmith.planner.step import Step

QUANTIZING = 20
"""Bytes per number of a chunk while bitsandbytes' CPU code quantizes it (measured: 14 to 23)."""


def while_loading(base: Base, step: Step, dtype: torch.dtype, device: Device) -> dict[str, int]:
    """Bytes by part. On a CPU a file stays mapped while one of its weights is in use; for a GPU the host maps it."""
    held = {part: step.parts.get(part, 0) for part in ("weights", "quantization constants", "reference models")}
    held["weights"] += step.parts.get("trained weights", 0)
    if base.from_scratch or device.kind != "cpu":
        return held
    if mapped := mapped_bytes(base, step, dtype):
        held["stored weights"] = mapped
    if base.quantized:
        held["quantizing"] = QUANTIZING * min(PIECE, step.largest)
    return held


def mapped_bytes(base: Base, step: Step, dtype: torch.dtype) -> int:
    """Bytes of the files that are mapped beside the weights made from them. All files count if the weights are
    quantized, transposed, or of another precision than the files; otherwise none, since the weights use the file's
    memory directly."""
    stored = stored_bytes(base, step)
    same = step.parameters * dtype.itemsize
    return stored if base.quantized or step.is_transposed or abs(stored - same) > 0.02 * stored else 0


def stored_bytes(base: Base, step: Step) -> int:
    """Bytes of the base's weight files; if they are not on this machine, computed from the precision in its config."""
    directory = Path(locate(base))
    files = sorted(directory.glob("*.safetensors")) if directory.is_dir() else []
    if files:
        return sum(file.stat().st_size for file in files)
    return step.parameters * stored_dtype(base).itemsize
