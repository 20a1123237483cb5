"""What is held while a base's weights are read."""

from pathlib import Path

import torch

from tunesmith.config.recipe import Base
from tunesmith.models.load import locate, stored_dtype
from tunesmith.ops.quantized import PIECE
from tunesmith.planner.device import Device
from tunesmith.planner.step import Step

QUANTIZING = 20
"""Bytes for each number of a piece while bitsandbytes' CPU code quantizes it (measured: 14 to 23)."""


def while_loading(base: Base, step: Step, dtype: torch.dtype, device: Device) -> dict[str, int]:
    """Bytes by part. On a CPU files stay mapped while a weight of theirs is in use; for a GPU the host maps them."""
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
    """Of the files that lie in memory beside the weights that are made of them: all, where those are quantized, turned,
    or of another precision than the files; none else, since weights are used where they lie in their file."""
    stored = stored_bytes(base, step)
    same = step.parameters * dtype.itemsize
    return stored if base.quantized or step.turned or abs(stored - same) > 0.02 * stored else 0


def stored_bytes(base: Base, step: Step) -> int:
    """Of the base's weights in its files; where these are not on this machine, in the precision that its config
    names."""
    directory = Path(locate(base))
    files = sorted(directory.glob("*.safetensors")) if directory.is_dir() else []
    if files:
        return sum(file.stat().st_size for file in files)
    return step.parameters * stored_dtype(base).itemsize
