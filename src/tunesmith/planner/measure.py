"""Measures a run: its largest batch before the first step, its peak memory, its steps."""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.objectives.objective import Objective

ENOUGH, MOST = 2.0, 5
"""Passes are timed until together they have taken the first number of seconds, or until there are the second number."""


def largest_batch_first(
    model: PreTrainedModel, objective: Objective, batch: Batch, device: torch.device
) -> tuple[float, float]:
    """Time the largest batch before the first step, so that a lack of memory shows now and not later. Gradients stay
    where the hooks put them.

    Args:
        model: ready to train.
        objective: gives the loss.
        batch: the largest of the run.
        device: of the run.

    Returns:
        Seconds per token of a pass forward and backward, and of one without gradients; each of the fastest of a few,
        or of a single one that takes long.
    """
    random_state = torch.get_rng_state()

    def forward_backward() -> None:
        torch.autograd.backward(objective.loss(model, batch))

    model.train()
    training = _fastest(forward_backward, device)
    model.eval()
    with torch.no_grad():
        evaluating = _fastest(lambda: objective.losses(model, batch), device)
    model.train()
    torch.set_rng_state(random_state)
    return training / batch.tokens, evaluating / batch.tokens


def time_in_parts(parts: Mapping[str, float], steps: int, tokens: int) -> dict[str, Any]:
    """A plan's `time`.

    Args:
        parts: seconds by part.
        steps: optimizer steps.
        tokens: of these steps, without padding.
    """
    return {
        "seconds_per_step": parts["training"] / max(1, steps),
        "tokens_per_second": tokens / max(parts["training"], 1e-9),
        "total_seconds": sum(parts.values()),
        "parts": dict(parts),
    }


def measured(parts: Mapping[str, float], steps: int, tokens: int, device: torch.device) -> dict[str, Any]:
    """Measured memory and time, in the same format as a plan. Arguments as in `time_in_parts`."""
    memory = measured_parts(device)
    return {
        "memory": {"peak_bytes": sum(memory.values()), "parts": memory},
        "time": time_in_parts(parts, steps, tokens),
        "fits": True,
        "device": str(device),
    }


def measured_parts(device: torch.device) -> dict[str, int]:
    """Peak bytes so far. On a CPU: the process's resident set. On a GPU: what PyTorch allocated to tensors, what it
    reserved beyond that, and what the driver and the program hold."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        program = total - free - torch.cuda.memory_reserved(device)
        return {"allocated": allocated, "allocator slack": reserved - allocated, "program": program}
    return {"resident": _peak_resident()}


def _peak_resident() -> int:
    """Bytes. getrusage(2) is only the fallback: its peak starts at the parent's resident set and cannot be reset."""
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1]  # proc(5)
        return int(status.split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far, the sum of all parts."""
    return sum(measured_parts(device).values())


def forget_peak(device: torch.device) -> None:
    """Reset the peak that `peak_memory` reports, if the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the resident set


def available_memory(device: torch.device) -> int:
    """Bytes that this process may hold: free memory plus its own resident set, at most its cgroup's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    memory = psutil.virtual_memory()
    limits = [memory.available + psutil.Process().memory_info().rss]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups(7), versions 2 and 1
        with suppress(OSError, ValueError):
            limits.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min(limits)


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several passes: the first one builds kernels and causes page faults, and other
    processes can slow each of them down, but nothing makes one faster."""
    seconds = [_timed(run, device)]
    while sum(seconds) < ENOUGH and len(seconds) < MOST:
        seconds.append(_timed(run, device))
    return min(seconds)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
