"""How long operations take on a device that is not here: whichever of its arithmetic and its memory takes longer, for
each operation (Williams et al. 2009), at the share of the rates on paper that well-written code reaches."""

from collections.abc import Callable, Mapping

import torch

from tunesmith.planner.device import Device
from tunesmith.planner.op_timer import OpTimer
from tunesmith.planner.trace import Operation

REACHED_BY_PRODUCTS = 0.65
"""Of the dense rate on paper, by large products: A100 and H100 runs of MLPerf and PaLM-like training report model
utilizations of 0.4 to 0.6, of which products alone are the faster part (Korthikanti et al. 2022, table 5)."""

REACHED_BY_MEMORY = 0.8
"""Of the bandwidth on paper: what stream benchmarks reach on GPUs."""

LAUNCH = 5e-6
"""Seconds that a GPU's kernel takes at least, launched from Python."""

Seconds = Callable[[Mapping[Operation, float], bool], float]
"""Of operations, with autograd around them or not."""


def seconds_on(device: Device, clock: OpTimer) -> Seconds:
    """What gives the seconds of operations there: the clock on this machine, else the roofline."""
    if device.is_here:
        return clock.total

    def seconds(operations: Mapping[Operation, float], _: bool) -> float:
        return sum(count * of(operation, device) for operation, count in operations.items())

    return seconds


def of(operation: Operation, device: Device) -> float:
    """Seconds of one operation."""
    precision = "fp32" if operation.precision == torch.float32 else "bf16"
    arithmetic = operation.flops / (device.flops[precision] * REACHED_BY_PRODUCTS)
    memory = operation.moved / (device.bytes_per_second * REACHED_BY_MEMORY)
    return max(arithmetic, memory, LAUNCH if device.kind != "cpu" else 0.0)
