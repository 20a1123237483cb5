"""Predicts a run's memory and time from its recipe. The command, the trainer and the reports all use this function."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tunesmith.config.extensions import failures_named
from tunesmith.data.batch import collate
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.evaluations import times_left
from tunesmith.planner.allocators import resident
from tunesmith.planner.device import Device, program_bytes
from tunesmith.planner.extrapolation import FEW_LAYERS, step_of
from tunesmith.planner.loading import while_loading
from tunesmith.planner.op_timer import OpTimer
from tunesmith.planner.roofline import seconds_on
from tunesmith.planner.step import Step

KERNEL_BYTES = 1.1e6
"""Bytes of code that oneDNN caches for each shape of a 16-bit matrix product (measured: 0.9 to 1.3 MB)."""

FIRST_USE = 30 * 2**20
"""Bytes that loading and the first step take beside tensors: Python objects of the model and the rows, 10 to 16 MiB;
the matrix library's buffers, 5 to 10; pages of library files, 5 to 7 (measured region by region, 5 M and 30 M
parameters)."""

GLIBC = 30 * 2**20
"""Bytes that glibc's heap grows by after steps of other sizes (fitted to fp32 runs)."""

MANY_LAYERS = 24
"""Blocks that are simulated one by one in glibc's heap, where gaps are a larger part."""

MOST_KERNELS = 1024
"""Capacity of oneDNN's primitive cache."""

IMPORTS = 5.0
"""Seconds until the libraries are imported and the rows are read, on two cores of a laptop."""

READ, WRITE = 5e8, 2e8
"""Bytes per second: weights that are read and converted, and checkpoints that are written and flushed to disk."""

STATE_BYTES = 12
"""Bytes of a trained weight in a checkpoint: its fp32 master and AdamW's two moments."""

SHOWN_AS = {"trained weights": "weights", "workspace": "activations", "loss": "loss workspace"}
"""Names in a plan, by the trace's part. Temporary memory of a pass counts as activations."""


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        parts: at the peak, by name.
        peaks: of each phase: loading, evaluating, training.
    """

    parts: dict[str, int]
    peaks: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Time:
    """A run's time.

    Attributes:
        seconds_per_step: mean of the training steps.
        tokens_per_second: non-padding tokens, through forward, backward and optimizer step.
        parts: seconds by part: start, training, evaluation, checkpoints. Empty if there are no rows to count by.
    """

    seconds_per_step: float
    tokens_per_second: float
    parts: dict[str, float]

    @property
    def total_seconds(self) -> float | None:
        """All parts together."""
        return sum(self.parts.values()) if self.parts else None

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "total_seconds": self.total_seconds}


@dataclass(frozen=True)
class Plan:
    """The predicted memory and time of a run on a device.

    Attributes:
        memory: at its peak and by phase.
        step: the simulated step.
        device: of the run.
        checkpointed: blocks with activation checkpointing.
        batch_plan: the rows, and the tokens per batch.
        available: bytes that the run may use.
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
        """The rows of the batch that needs the most memory."""
        return self.batch_plan.layout(self.step.packed).largest_of(self.step.scores)

    @cached_property
    def time(self) -> Time:
        """From operations timed one by one on this machine; from the table's rates on other devices."""
        layout = self.batch_plan.layout(self.step.packed)
        steps = layout.steps
        lengths = layout.table.lengths
        seconds = seconds_on(self.device, self._timer)
        batch_tokens = sum(int(lengths[row]) for row in self.largest_batch)
        batch_seconds = seconds(self.step.forward_backward, True)
        tokens = layout.tokens_in(0, steps)
        per_step = batch_seconds * tokens / steps / batch_tokens + seconds(self.step.optimizer, False)
        if not self.batch_plan.known:
            return Time(per_step, tokens / steps / per_step, {})
        train, evaluations = self.batch_plan.recipe.train, layout.evaluations
        evaluated = evaluations.tokens * evaluations.times(steps)
        parts = {
            "start": IMPORTS + self.step.parameters * self.dtype.itemsize / READ + batch_seconds,
            "training": per_step * steps,
            "evaluation": seconds(self.step.evaluation, True) * evaluated / batch_tokens if evaluated else 0.0,
            "checkpoints": checkpoint_seconds(self.step.trained, times_left(train.checkpoint_steps(steps), 0, steps)),
        }
        return Time(per_step, tokens / steps / per_step, parts)

    @property
    def _timer(self) -> OpTimer:
        kind = self.device.kind if self.device.is_here else "cpu"
        lengths = tuple(collate(self.batch_plan.layout(self.step.packed).table, self.largest_batch).lengths)
        return OpTimer.of(lengths, torch.device(kind), torch.get_num_threads())

    def to_dict(self, timed: bool = True) -> dict[str, Any]:
        """The format of `tunesmith plan --json` and of the `plan` event."""
        memory = {"peak_bytes": self.memory.peak_bytes, "parts": self.memory.parts, "peaks": self.memory.peaks}
        result: dict[str, Any] = {"memory": memory, "fits": self.fits, "device": self.device.name}
        if timed:
            result["time"] = self.time.to_dict()
        return result


def checkpoint_seconds(trained: int, times: int) -> float:
    """Seconds for writing the checkpoints of this many trained weights."""
    return STATE_BYTES * trained / WRITE * times


def plan_run(
    batch_plan: BatchPlan,
    dtype: torch.dtype,
    device: Device,
    available: int | None = None,
    checkpointed: int | None = None,
) -> Plan:
    """Predict a run's memory and time; no weights are read.

    Args:
        batch_plan: the recipe, with its objective resolved, and the rows.
        dtype: of everything that is not quantized.
        device: of the run.
        available: bytes that it may use; default: all of the device's memory.
        checkpointed: blocks with activation checkpointing; default: as in the recipe.

    Raises:
        UserError: base, method and objective are not compatible, or the architecture does not run on fake tensors.
    """

    def rows(packed: bool, scores: bool) -> tuple[TokenTable, list[int]]:
        layout = batch_plan.layout(packed)
        return layout.table, layout.largest_of(scores)

    few_layers = MANY_LAYERS if device.simulate_allocator is resident else FEW_LAYERS
    with failures_named(batch_plan.recipe.extensions):
        step = step_of(batch_plan.recipe, rows, dtype, device.simulate_allocator, checkpointed, few_layers)
    if checkpointed is None:
        checkpointed = step.blocks if batch_plan.recipe.train.gradient_checkpointing else 0
    return plan_of(step, batch_plan, dtype, device, available, checkpointed)


def plan_of(
    step: Step, batch_plan: BatchPlan, dtype: torch.dtype, device: Device, available: int | None, checkpointed: int
) -> Plan:
    """The plan of a run from its simulated step; other arguments as in `plan_run`."""
    program = used = device.program_bytes
    if device.is_this_cpu:
        shapes = min(MOST_KERNELS, step.products * len(batch_plan.layout(step.packed).widths))
        program = program_bytes()
        used = (
            program + FIRST_USE + round(KERNEL_BYTES * shapes) + (GLIBC if device.simulate_allocator is resident else 0)
        )
    phases = {
        "loading": {"program": program} | while_loading(batch_plan.recipe.base, step, dtype, device),
        "evaluating": {"program": used} | _named(step.evaluation_parts),
        "training": {"program": used} | _named(step.parts) | {"allocator slack": step.slack},
    }
    peaks = {name: sum(parts.values()) for name, parts in phases.items()}
    largest = max(phases, key=lambda name: peaks[name])
    room = device.memory_bytes if available is None else available
    return Plan(Memory(phases[largest], peaks), step, device, checkpointed, batch_plan, room, dtype)


def _named(parts: Mapping[str, int]) -> dict[str, int]:
    named: dict[str, int] = {}
    for part, count in parts.items():
        name = SHOWN_AS.get(part, part)
        named[name] = named.get(name, 0) + count
    return named
