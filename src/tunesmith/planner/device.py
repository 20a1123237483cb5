"""What a device has: memory and rates, of this machine measured, of others from their makers' data sheets."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from tunesmith.engine.allocator import arena
from tunesmith.engine.precision import dtype_of
from tunesmith.errors import UserError
from tunesmith.planner.allocators import Passes, reserved, resident, spanned


@dataclass(frozen=True)
class Device:
    """Where a run goes.

    Attributes:
        name: as it is called on the command line.
        kind: `cpu`, `cuda` or `mps`.
        memory_bytes: all it has.
        flops: of dense matrix products, by precision, a second.
        bytes_per_second: to and from its memory.
        program_bytes: what Python, its libraries and the driver hold there.
        price: US dollars an hour, to rent; None where it is not rented.
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
        """Whether it is this machine's, whose rates are measured."""
        return not self.flops

    @property
    def is_this_cpu(self) -> bool:
        """Whether what foretelling takes stays with the run."""
        return self.is_here and self.kind == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """What `train.precision: auto` takes there."""
        if self.is_here:
            return dtype_of("auto", torch.device(self.kind))
        return torch.bfloat16 if "bf16" in self.flops else torch.float32

    @property
    def holds(self) -> Callable[[Passes], int]:
        """What its allocator has of the system."""
        if self.kind == "cuda":
            return reserved
        return spanned if self.is_this_cpu and arena() is not None else resident


DEVICES = Path(__file__).with_name("devices.json")


@cache
def known_devices() -> dict[str, Device]:
    """Those of devices.json, by name."""
    told = json.loads(DEVICES.read_text(encoding="utf-8"))["devices"]
    return {
        each["name"]: Device(
            each["name"],
            each["kind"],
            int(each["memory_gib"] * 2**30),
            {precision: rate * 1e12 for precision, rate in each["tflops"].items()},
            each["gigabytes_per_second"] * 1e9,
            int(each["program_gib"] * 2**30),
            each.get("price"),
            each["source"],
        )
        for each in told
    }


def device_named(name: str) -> Device:
    """One of the table, or `here`.

    Raises:
        UserError: it is not in the table.
    """
    if name == "here":
        return this_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found = known_devices()
    if name.lower() not in found:
        raise UserError(f"--device: {name} is not known. Known: here, {', '.join(found)}.")
    return found[name.lower()]


def this_device(device: torch.device) -> Device:
    """The one that this process runs on; its rates are not told here but measured operation by operation
    (`planner.clock`)."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        torch.zeros(1, device=device)
        free, total = torch.cuda.mem_get_info(device)
        driver = total - free - torch.cuda.memory_reserved(device)
        return Device(properties.name, "cuda", total, {}, 0.0, driver)
    memory = psutil.virtual_memory()
    return Device("this CPU", "cpu", memory.total, {}, 0.0, program_bytes())


def program_bytes() -> int:
    """What this process holds of Python and its libraries."""
    return int(psutil.Process().memory_info().rss)
