"""The dtype of the forward and backward passes, measured on this device instead of guessed from its name."""

import sys
import time
from functools import cache

import torch

from tunesmith.errors import UserError

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def device_of(name: str) -> torch.device:
    """The device with that name; `auto` is a GPU if there is one.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"train.device: {name} is not a device of this machine. Set it to cpu or auto.") from None
    return device


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 if matrix products are more than 1.5 times as fast in it, else fp32."""
    if precision != "auto":
        return _DTYPES[precision]
    return torch.bfloat16 if bf16_speedup(device.type) > 1.5 else torch.float32


def writing_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a model that writes text. `auto` is fp32 on a CPU: the engine's sums are in fp32 there, and weights
    that are exact in bf16 are read as such, so that bf16 would only round more."""
    return torch.float32 if precision == "auto" and device.type == "cpu" else dtype_of(precision, device)


@cache
def bf16_speedup(device_type: str) -> float:
    """How many times faster a 768 × 768 × 768 product is in bf16 than in fp32, best of five runs. If a small product is
    much slower (a CPU without bf16 instructions), its ratio is returned: a large product would take a second.

    A CPU's products run on one thread and are timed by its processor time, which other processes hardly change. By wall
    time, a busy machine would now and then choose another dtype.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        small = _speedup(384, device_type)
        return small if small < 0.5 else _speedup(768, device_type)
    finally:
        torch.set_num_threads(threads)


def _speedup(side: int, device_type: str) -> float:
    has_fine_thread_time = device_type == "cpu" and sys.platform != "win32"  # there in steps of 16 ms
    clock = time.thread_time if has_fine_thread_time else time.perf_counter
    seconds = {}
    for dtype in _DTYPES.values():
        a = torch.ones(side, side, dtype=dtype, device=device_type)
        best = float("inf")
        for _ in range(5):
            started = clock()
            (a @ a)[0, 0].item()
            best = min(best, clock() - started)
        seconds[dtype] = best
    return seconds[torch.float32] / seconds[torch.bfloat16]
