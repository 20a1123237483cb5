"""What is held while a base's weights are read."""

from pathlib import Path

import torch

from tunesmith.models.load import locate
from tunesmith.ops.quantised import PIECE
from tunesmith.planner.device import Device
from tunesmith.planner.step import Step
from tunesmith.recipe import Base

QUANTISING = 20
"""Bytes for each number of a piece while bitsandbytes' CPU code quantises it (measured: 14 to 23)."""


def while_loading(base: Base, step: Step, dtype: torch.dtype, device: Device) -> dict[str, int]:
    """Bytes by part. On a CPU files stay mapped while a weight of theirs is in use; for a GPU the host maps them."""
    held = {part: step.parts.get(part, 0) for part in ("weights", "quantisation constants", "reference models")}
    held["weights"] += step.parts.get("trained weights", 0)
    if base.from_scratch or device.kind != "cpu":
        return held
    stored = stored_bytes(base)
    if base.quantised:
        pieces = QUANTISING * min(PIECE, step.largest)
        return held | {"stored weights": stored or round(step.parameters * dtype.itemsize), "quantising": pieces}
    same = stored is None or abs(stored - step.parameters * dtype.itemsize) < 0.02 * stored
    return held if same else held | {"stored weights": stored or 0}


def stored_bytes(base: Base) -> int | None:
    """Of the base's weights in its files; None where they are not on this machine."""
    folder = Path(locate(base))
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return sum(file.stat().st_size for file in files) if files else None
