"""What a run will need, from one pass over its heaviest batch: what does not fit fails in the first seconds."""

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from tunesmith.choices import ObjectiveConfig
from tunesmith.data.pack import Batch
from tunesmith.models.quantise import quantised_bytes

_MASTER, _GRADIENT, _MOMENTS = 4, 4, 8  # bytes a trained parameter, all fp32


def probe(
    model: PreTrainedModel,
    objective: ObjectiveConfig,
    heaviest: Batch,
    *,
    trained_parameters: int,
    tokens_left: int,
    steps_left: int,
    device: torch.device,
) -> dict[str, Any]:
    """Forward and backward over one batch, timed; gradients are left where the hooks put them.

    Args:
        model: ready to train.
        objective: gives the loss.
        heaviest: the batch with most tokens.
        trained_parameters: numbers that the optimiser keeps.
        tokens_left: real tokens that the run will still read.
        steps_left: optimiser steps that the run will still take.
        device: where it runs.

    Returns:
        {"memory": {"peak_bytes", "parts": {name: bytes}}, "time": {"seconds_per_step", "tokens_per_second",
        "total_seconds"}, "device"}.
    """
    random_state = torch.get_rng_state()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    weights += quantised_bytes(model)
    kept = trained_parameters * (_MASTER + _GRADIENT + _MOMENTS)
    before = memory_now(device)
    model.train()
    seconds = _timed(model, objective, heaviest, device)
    if seconds < 2.0:  # the first pass also builds kernels and faults pages in
        seconds = min(seconds, _timed(model, objective, heaviest, device))
    torch.set_rng_state(random_state)
    peak = peak_memory(device)
    moments = trained_parameters * _MOMENTS  # these come with the first update
    parts = {
        "weights": weights,
        "optimiser": kept,
        "activations": max(0, peak - before),
        "Python": max(0, before - weights - kept + moments),
    }
    seconds_per_token = seconds / heaviest.tokens
    return {
        "memory": {"peak_bytes": sum(parts.values()), "parts": parts},
        "time": {
            "seconds_per_step": seconds_per_token * tokens_left / max(1, steps_left),
            "tokens_per_second": 1 / seconds_per_token,
            "total_seconds": seconds_per_token * tokens_left,
        },
        "device": str(device),
    }


def measured(seconds: float, steps: int, tokens: int, device: torch.device) -> dict[str, Any]:
    """What it took, in the shape of `probe`'s answer."""
    return {
        "memory": {"peak_bytes": peak_memory(device)},
        "time": {
            "seconds_per_step": seconds / max(1, steps),
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "total_seconds": seconds,
        },
        "device": str(device),
    }


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: of the GPU by PyTorch, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` count from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the resident set


def memory_now(device: torch.device) -> int:
    """Bytes held at this moment, counted as `peak_memory` counts."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def _timed(model: PreTrainedModel, objective: ObjectiveConfig, batch: Batch, device: torch.device) -> float:
    started = time.perf_counter()
    objective.loss(model, batch).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
