"""A device's memory and rates: measured on this machine, taken from data sheets for others."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from tunesmith.engine.allocator import arena
from tunesmith.errors import UserError
from tunesmith.models.precision import dtype_of
from tunesmith.planner.allocators import Passes, reserved, resident, spanned


@dataclass(frozen=True)
class Device:
    """The device of a run.

    Attributes:
        name: as on the command line.
        kind: `cpu`, `cuda` or `mps`.
        memory_bytes: total.
        flops: per second, of dense matrix products, by precision.
        bytes_per_second: to and from its memory.
        program_bytes: held by Python, its libraries and the driver.
        price: US dollars per hour, to rent; None if it is not for rent.
        source: of the figures.
    """

    name: str
    kind: str
    memory_bytes: int
    flops: dict[str, float]
    bytes_per_second: float
    program_bytes: int
    price: float | None = None
    source: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it belongs to this machine, where rates are measured."""
        return not self.flops

    @property
    def is_this_cpu(self) -> bool:
        """Whether the memory that the prediction uses stays in the run's process."""
        return self.is_here and self.kind == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `train.precision: auto` resolves to there."""
        if self.is_here:
            return dtype_of("auto", torch.device(self.kind))
        return torch.bfloat16 if "bf16" in self.flops else torch.float32

    @property
    def simulate_allocator(self) -> Callable[[Passes], int]:
        """Simulates its allocator: the peak bytes that it holds from the system."""
        if self.kind == "cuda":
            return reserved
        return spanned if self.is_this_cpu and arena() is not None else resident


DEVICES = Path(__file__).with_name("devices.json")


@cache
def known_devices() -> dict[str, Device]:
    """The devices of devices.json, by name."""
    entries = json.loads(DEVICES.read_text(encoding="utf-8"))["devices"]
    return {
        entry["name"]: Device(
            entry["name"],
            entry["kind"],
            int(entry["memory_gib"] * 2**30),
            {precision: rate * 1e12 for precision, rate in entry["tflops"].items()},
            entry["gigabytes_per_second"] * 1e9,
            int(entry["program_gib"] * 2**30),
            entry.get("price"),
            entry["source"],
        )
        for entry in entries
    }


def device_named(name: str) -> Device:
    """A device of the table, or this machine's for `here`.

    Raises:
        UserError: it is not in the table.
    """
    if name == "here":
        return this_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    devices = known_devices()
    if name.lower() not in devices:
        raise UserError(f"--device: {name} is not known. Known: here, {', '.join(devices)}.")
    return devices[name.lower()]


def this_device(device: torch.device) -> Device:
    """The device of this process. Its rates are not listed here but measured per operation (`planner.op_timer`)."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        torch.zeros(1, device=device)
        free, total = torch.cuda.mem_get_info(device)
        driver = total - free - torch.cuda.memory_reserved(device)
        return Device(properties.name, "cuda", total, {}, 0.0, driver)
    memory = psutil.virtual_memory()
    return Device("this CPU", "cpu", memory.total, {}, 0.0, program_bytes())


def program_bytes() -> int:
    """Resident bytes of this process: Python and its libraries."""
    return int(psutil.Process().memory_info().rss)
