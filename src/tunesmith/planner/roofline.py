"""Estimates how long operations take on another device: for each operation the slower of arithmetic and memory
(Williams et al. 2009), at the fraction of the data sheet's rates that well-written code reaches."""

from collections.abc import Callable, Mapping

import torch

from tunesmith.planner.device import Device
from tunesmith.planner.op_timer import OpTimer
from tunesmith.planner.trace import Operation

REACHED_BY_PRODUCTS = 0.65
"""Fraction of the data sheet's dense rate that large matrix products reach: A100 and H100 runs of MLPerf and PaLM-like
training report model FLOPs utilizations of 0.4 to 0.6, and products alone are faster (Korthikanti et al. 2022, table
5)."""

REACHED_BY_MEMORY = 0.8
"""Fraction of the data sheet's bandwidth that stream benchmarks reach on GPUs."""

LAUNCH = 5e-6
"""Minimum seconds of a GPU kernel launched from Python."""

Seconds = Callable[[Mapping[Operation, float], bool], float]
"""Seconds of operations; the flag adds autograd's overhead."""


def seconds_on(device: Device, timer: OpTimer) -> Seconds:
    """A function that gives the seconds of operations on a device: timed on this machine, else by the roofline."""
    if device.is_here:
        return timer.total

    def seconds(operations: Mapping[Operation, float], _: bool) -> float:
        return sum(count * of(operation, device) for operation, count in operations.items())

    return seconds


def of(operation: Operation, device: Device) -> float:
    """Seconds of one operation."""
    precision = "fp32" if operation.precision == torch.float32 else "bf16"
    arithmetic = operation.flops / (device.flops[precision] * REACHED_BY_PRODUCTS)
    memory = operation.moved / (device.bytes_per_second * REACHED_BY_MEMORY)
    return max(arithmetic, memory, LAUNCH if device.kind != "cpu" else 0.0)
