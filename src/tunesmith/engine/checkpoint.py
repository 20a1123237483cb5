"""Checkpoints: everything that the next step depends on, written so that a kill at any moment leaves a complete one.

A checkpoint is a directory `step-000050` with `state.safetensors` (masters, AdamW's moments, random states) and
`loop.json` (step, best evaluation, size of metrics.jsonl). It is written under another name, flushed to disk, and
renamed in one operation, so a directory with that name is always complete.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.run import atomic_directory

PARTS = ("start", "training", "evaluation", "checkpoints")
"""The parts of a run's time."""


@dataclass
class LoopState:
    """The state of the loop after a step, as plain JSON values.

    Attributes:
        step: optimizer steps done.
        best_loss: the lowest held-out loss so far, in nats per loss token.
        best_step: the step with that loss.
        evaluations_without_improvement: evaluations since then without an improvement.
        skipped_in_a_row: consecutive steps up to now whose loss or gradient was not finite.
        tokens: tokens read, without padding.
        seconds: time so far by part: start (until the first step), training (steps), evaluation, checkpoints.
        threads: threads that PyTorch used; with another number, sums may round differently.
        metrics_bytes: size of metrics.jsonl when the checkpoint was written.
    """

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    skipped_in_a_row: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    threads: int = 0
    metrics_bytes: int = 0
    most_tokens: int = 0
    """The most tokens per batch, since memory ran out with more; 0: as planned."""
    cache_pages: int = 0
    """Pages of the cache that rollouts are sampled with; 0: not known yet."""
    objective: dict[str, Any] = field(default_factory=dict)
    """What the objective keeps from step to step."""


def save_checkpoint(directory: Path, tensors: dict[str, Tensor], state: LoopState, keep: int) -> Path:
    """Write `directory/step-NNNNNN` and remove all but the newest `keep` checkpoints and the best one.

    Args:
        directory: of the run's checkpoints.
        tensors: by name: master weights and optimizer states.
        state: the progress of the loop.
        keep: how many of the newest checkpoints are kept.

    Returns:
        The checkpoint's directory.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are unchanged.
    """
    final = directory / f"step-{state.step:06d}"
    try:
        with atomic_directory(final, replace=True) as partial:
            save_file({**tensors, **_random_states()}, partial / "state.safetensors")
            (partial / "loop.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The checkpoint of step {state.step:,} could not be written to {directory}: {error}. Earlier checkpoints "
            f"are intact. Free some disk space, then run: tunesmith train --resume {directory.parent}"
        ) from None
    _prune(directory, state, keep)
    return final


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint of the highest step, or None before the first one."""
    steps = sorted(directory.glob("step-*"))
    return steps[-1] if steps else None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], LoopState]:
    """Read a checkpoint and restore the random states.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        tensors = load_file(path / "state.safetensors")
        state = LoopState(**json.loads((path / "loop.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove that directory to resume from the checkpoint before it."
        ) from None
    torch.set_rng_state(tensors.pop("random.cpu"))
    on_gpu = tensors.pop("random.cuda", None)
    if on_gpu is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(on_gpu)
    return tensors, state


def _random_states() -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def _prune(directory: Path, state: LoopState, keep: int) -> None:
    for old in sorted(directory.glob("step-*"))[:-keep]:
        if old.name != f"step-{state.best_step or 0:06d}":
            shutil.rmtree(old)


def read_loop_state(path: Path) -> dict[str, Any]:
    """Only `loop.json`, to report how far a run is."""
    values: dict[str, Any] = json.loads((path / "loop.json").read_text(encoding="utf-8"))
    return values
