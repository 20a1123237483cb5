"""What a run takes, measured: its heaviest batch before the first step, its peak of memory, its steps."""

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from tunesmith.config.registry import ObjectiveConfig
from tunesmith.data.pack import Batch

SHORT = 2.0  # seconds of a pass that is timed once more


def largest_batch_first(
    model: PreTrainedModel,
    objective: ObjectiveConfig,
    batch: Batch,
    *,
    tokens_left: int,
    steps_left: int,
    device: torch.device,
) -> dict[str, Any]:
    """Forward and backward over the heaviest batch before the first step, timed, so that memory runs out now or never;
    gradients are left where the hooks put them.

    Args:
        model: ready to train.
        objective: gives the loss.
        batch: the heaviest.
        tokens_left: real tokens that the run will still read.
        steps_left: optimizer steps that the run will still take.
        device: where it runs.

    Returns:
        A plan's `time`, from this pass.
    """
    random_state = torch.get_rng_state()
    model.train()
    seconds = _timed(model, objective, batch, device)
    if seconds < SHORT:  # the first pass also builds kernels and faults pages in
        seconds = min(seconds, _timed(model, objective, batch, device))
    torch.set_rng_state(random_state)
    per_token = seconds / batch.tokens
    return {
        "seconds_per_step": per_token * tokens_left / max(1, steps_left),
        "tokens_per_second": 1 / per_token,
        "total_seconds": per_token * tokens_left,
    }


def measured(seconds: float, steps: int, tokens: int, device: torch.device) -> dict[str, Any]:
    """What it took, in the shape of a plan."""
    parts = measured_parts(device)
    return {
        "memory": {"peak_bytes": sum(parts.values()), "parts": parts},
        "time": {
            "seconds_per_step": seconds / max(1, steps),
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "total_seconds": seconds,
        },
        "fits": True,
        "device": str(device),
    }


def measured_parts(device: torch.device) -> dict[str, int]:
    """Most bytes held so far: the process's resident set; of a GPU what PyTorch gave to tensors, what it had of the
    system beyond that, and what the driver and the program hold."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        program = total - free - torch.cuda.memory_reserved(device)
        return {"allocated": allocated, "allocator slack": reserved - allocated, "program": program}
    return {"resident": _most_resident()}


def _most_resident() -> int:
    """Bytes. Not by getrusage(2) where there is another way: what it tells of a process begins with what its parent
    had when it was started, and is never forgotten."""
    with suppress(OSError, ValueError, IndexError):
        told = Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1]  # proc(5)
        return int(told.split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far, all parts."""
    return sum(measured_parts(device).values())


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` count from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the resident set


def available_memory(device: torch.device) -> int:
    """Bytes that this process may hold: what is free, what it holds already, and no more than its control group has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    memory = psutil.virtual_memory()
    limits = [memory.available + psutil.Process().memory_info().rss]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups(7), versions 2 and 1
        with suppress(OSError, ValueError):
            limits.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min(limits)


def _timed(model: PreTrainedModel, objective: ObjectiveConfig, batch: Batch, device: torch.device) -> float:
    started = time.perf_counter()
    objective.loss(model, batch).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
