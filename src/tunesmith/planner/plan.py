"""A run's memory and time, foretold from its recipe: the one function that the command, the trainer and the reports
ask."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tunesmith.data.pack import collate
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.planner.allocators import resident
from tunesmith.planner.device import Device, program_bytes
from tunesmith.planner.loading import while_loading
from tunesmith.planner.op_timer import OpTimer
from tunesmith.planner.roofline import seconds_on
from tunesmith.planner.step import FEW_LAYERS, Step, step_of

KERNEL_BYTES = 1.1e6
"""What oneDNN keeps of code for each shape of a product in 16 bits that it has met (measured: 0.9 to 1.3 MB)."""

FIRST_USE = 30 * 2**20
"""What loading and the first step take beside tensors: Python's objects for the model and the rows, 10 to 16 MiB, the
matrix library's buffers, 5 to 10, pages of libraries' files, 5 to 7 (measured region by region, 5 M and 30 M)."""

GLIBC = 30 * 2**20
"""What glibc's heap grows by when steps of other sizes have passed (fitted to fp32 runs)."""

MANY_LAYERS = 24
"""In glibc's heap, where gaps are a larger part, so many blocks are carried out each."""

MOST_KERNELS = 1024
"""So many it keeps (oneDNN's primitive cache)."""

SHOWN_AS = {"trained weights": "weights", "workspace": "activations", "loss": "loss workspace"}
"""Parts of the trace by the names that they have in a plan. What a pass needs at once and does not keep counts as
activations."""


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        parts: by name, when most are held.
        peaks: the most that is held in each phase: loading, evaluating, training.
    """

    parts: dict[str, int]
    peaks: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Time:
    """Of the steps alone, without evaluations.

    Attributes:
        seconds_per_step: on average.
        tokens_per_second: real tokens, forward, backward and update.
        total_seconds: of all steps; None where no rows tell how many there are.
    """

    seconds_per_step: float
    tokens_per_second: float
    total_seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What a run will take on a device.

    Attributes:
        memory: at its peak and by phase.
        step: what was found out about one step.
        device: where.
        recomputed: how many blocks compute their activations twice.
        workload: the rows, and how many tokens go at once.
        available: bytes that the run may take.
        dtype: of everything that is not quantized.
    """

    memory: Memory
    step: Step
    device: Device
    checkpointed: int
    batch_plan: BatchPlan
    available: int
    dtype: torch.dtype

    @property
    def fits(self) -> bool:
        return self.memory.peak_bytes <= self.available

    @property
    def largest_batch(self) -> list[int]:
        """The rows of the batch that takes most memory."""
        return self.batch_plan.layout(self.step.packed).largest_of(self.step.scores)

    @cached_property
    def time(self) -> Time:
        """Measured operation by operation on this machine's CPU; by the table's rates elsewhere."""
        layout = self.batch_plan.layout(self.step.packed)
        batches, steps = layout.batches, layout.steps
        lengths = batches.table.lengths
        seconds = seconds_on(self.device, self._timer)
        batch = seconds(self.step.learning, True) / sum(int(lengths[row]) for row in self.largest_batch)  # a token
        update = seconds(self.step.updating, False)
        tokens = batches.tokens_in(0, steps)
        a_step = batch * tokens / steps + update
        return Time(a_step, tokens / steps / a_step, a_step * steps if self.batch_plan.known else None)

    @property
    def _timer(self) -> OpTimer:
        kind = self.device.kind if self.device.is_here else "cpu"
        lengths = tuple(collate(self.batch_plan.table, self.largest_batch).lengths)
        return OpTimer.of(lengths, torch.device(kind), torch.get_num_threads())

    def to_dict(self, timed: bool = True) -> dict[str, Any]:
        """As `tunesmith plan --json` prints it, and as the event `plan` has it."""
        memory = {"peak_bytes": self.memory.peak_bytes, "parts": self.memory.parts, "peaks": self.memory.peaks}
        found: dict[str, Any] = {"memory": memory, "fits": self.fits, "device": self.device.name}
        if timed:
            found["time"] = vars(self.time)
        return found


def plan_run(
    batch_plan: BatchPlan,
    dtype: torch.dtype,
    device: Device,
    available: int | None = None,
    checkpointed: int | None = None,
) -> Plan:
    """Foretell a run; no weight is read.

    Args:
        workload: the recipe, its objective settled, and the rows.
        dtype: of everything that is not quantized.
        device: where it is to run.
        available: bytes that it may take; default: all that the device has.
        recomputed: how many blocks compute their activations twice; default: as the recipe says.

    Raises:
        UserError: base, method and objective do not go together, or the family cannot be carried out without numbers.
    """

    def rows(packed: bool, scores: bool) -> tuple[TokenTable, list[int]]:
        return batch_plan.table, batch_plan.layout(packed).largest_of(scores)

    few_layers = MANY_LAYERS if device.holds is resident else FEW_LAYERS
    step = step_of(batch_plan.recipe, rows, dtype, device.holds, checkpointed, few_layers)
    if checkpointed is None:
        checkpointed = step.blocks if batch_plan.recipe.train.gradient_checkpointing else 0
    return plan_of(step, batch_plan, dtype, device, available, checkpointed)


def plan_of(
    step: Step, batch_plan: BatchPlan, dtype: torch.dtype, device: Device, available: int | None, checkpointed: int
) -> Plan:
    """The plan of a run of which one step is known; arguments as in `plan_run`."""
    program = used = device.program_bytes
    if device.is_this_cpu:
        shapes = min(MOST_KERNELS, step.products * len(batch_plan.layout(step.packed).widths))
        program = program_bytes()
        used = program + FIRST_USE + round(KERNEL_BYTES * shapes) + (GLIBC if device.holds is resident else 0)
    phases = {
        "loading": {"program": program} | while_loading(batch_plan.recipe.base, step, dtype, device),
        "evaluating": {"program": used} | _named(step.evaluating),
        "training": {"program": used} | _named(step.parts) | {"allocator slack": step.slack},
    }
    peaks = {name: sum(parts.values()) for name, parts in phases.items()}
    most = max(phases, key=lambda name: peaks[name])
    room = device.memory_bytes if available is None else available
    return Plan(Memory(phases[most], peaks), step, device, checkpointed, batch_plan, room, dtype)


def _named(parts: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part, count in parts.items():
        name = SHOWN_AS.get(part, part)
        found[name] = found.get(name, 0) + count
    return found
