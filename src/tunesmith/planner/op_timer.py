"""Times operations on this machine: each is run and timed with tensors of the same shapes. Operations that are too
large to run are estimated from measured rates, by the slower of arithmetic and memory (Williams et al. 2009, the
roofline)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.ops import native
from tunesmith.ops.document_attention import document_layout
from tunesmith.planner.fake_mode import TensorSpec
from tunesmith.planner.trace import PRODUCTS, AttentionParameters, Operation

OVERHEAD = 45e-6
"""Seconds of Python and autograd around an operation on a CPU, on top of its own call: the difference found on a model
with small operations (benchmarks/plan_accuracy.py, llama-5m)."""

NEAR = 2 * 2**20
"""Bytes that the previous operation leaves in a core's own cache."""

CACHES = 64 * 2**20
"""Bytes written between two timings to evict caches: more than a core's share of the processor's caches."""

LARGE, LARGE_FLOPS = 2**29, 2e11
"""Bytes and FLOPs above which operations are not run."""

SLOW, SLOW_FLOPS = 1.0, 1e10
"""Seconds above which a matrix product is not run either, since it has the same rate as smaller ones; and FLOPs below
which none takes so long."""

ROUNDS, MOST_ROUNDS, ENOUGH = 3, 12, 4.0
"""Rounds of timing: at least, at most, and for about how many seconds if all operations are new. Other load on the
machine comes and goes within seconds."""

SHORT, LONG = 0.02, 1.0
"""Seconds of an operation that is timed twice per round, and total seconds after which it has been timed enough."""


@dataclass
class OpTimer:
    """Times operations on a device of this machine, each kind once. On a GPU our CPU kernels are estimated by rates
    instead.

    Attributes:
        lengths: of the documents in attention, in tokens.
        device: where operations run.
        seconds: measured, by operation.
        rates: FLOPs and bytes per second, by dtype, once they were needed.
        between: written between two timings; empty when none are made.
    """

    lengths: Sequence[int]
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    seconds: dict[Operation, float] = field(default_factory=dict)
    rates: dict[torch.dtype, tuple[float, float]] = field(default_factory=dict)
    between: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    @lru_cache(maxsize=1)
    def of(cls, lengths: tuple[int, ...], device: torch.device, threads: int) -> "OpTimer":
        """One shared timer for plans of the same rows and thread count, since they have most operations in common."""
        return cls(lengths, device)

    @keep_freed_memory()  # as a run does
    def total(self, operations: Mapping[Operation, float], recorded: bool = True) -> float:
        """Seconds of all operations, one after another.

        Args:
            operations: with their counts.
            recorded: with the overhead of modules and autograd, as in a pass; without it, as in an optimizer step.
        """
        if new := [operation for operation in operations if operation not in self.seconds]:
            self._measure(new, ENOUGH * len(new) / len(operations))
        overhead = OVERHEAD if recorded else 0.0
        return sum(count * (self.seconds[operation] + overhead) for operation, count in operations.items())

    def _measure(self, operations: Sequence[Operation], enough: float) -> None:
        """Time operations in rounds over all of them, for about `enough` seconds, so that a second of other load on the
        machine does not distort a single operation."""
        self.between = torch.zeros(CACHES // 4)
        timings: dict[Operation, list[float]] = {each: [] for each in operations if not self._is_large(each)}
        started = time.perf_counter()
        for number in range(MOST_ROUNDS):
            if number >= ROUNDS and time.perf_counter() - started > enough:
                break
            for operation, seconds in timings.items():
                if sum(seconds) < LONG:
                    seconds += self._timings(operation)
        for operation in operations:
            measured = timings.get(operation)
            self.seconds[operation] = median(measured) if measured else self._by_rates(operation)
        self.between = torch.empty(0)

    def _is_large(self, operation: Operation) -> bool:
        """Whether it takes too long or too much memory to run, or is a CPU kernel on a GPU."""
        is_cpu_kernel_on_gpu = self.device.type != "cpu" and "." not in operation.name
        if operation.moved > LARGE or operation.flops > LARGE_FLOPS or is_cpu_kernel_on_gpu:
            return True
        if operation.flops < SLOW_FLOPS or not operation.name.startswith(PRODUCTS):
            return False
        return operation.flops > SLOW * self.measured_rates(operation.precision)[0]

    def _by_rates(self, operation: Operation) -> float:
        """Seconds of an operation that is not run: the slower of arithmetic and memory, at the rates of smaller
        ones."""
        flops, memory = self.measured_rates(operation.precision)
        return max(operation.flops / flops, operation.moved / memory)

    def measured_rates(self, dtype: torch.dtype) -> tuple[float, float]:
        """FLOPs and bytes per second, measured on a matrix product and an addition of typical size, once.

        Args:
            dtype: of the product.
        """
        if dtype not in self.rates:
            side = 2048
            a = torch.full((side, side), 0.01, dtype=dtype, device=self.device)
            b = torch.full((LARGE // 16,), 0.01, device=self.device)
            a @ a, b.add_(1)
            product = median(self._timed(lambda: a @ a) for _ in range(3))
            addition = median(self._timed(lambda: b.add_(1)) for _ in range(3))
            self.rates[dtype] = 2 * side**3 / product, 2 * b.nbytes / addition
        return self.rates[dtype]

    @torch.no_grad()
    def _timings(self, operation: Operation) -> list[float]:
        """Seconds of one operation, timed twice if it is short; empty if it cannot run on its own."""
        call = self._torch(operation) if "." in operation.name else self._kernel(operation)
        cold = operation.moved > NEAR
        try:
            call()  # the first call compiles code for the shape
            first = self._timed(call, cold)
            return [first, self._timed(call, cold)] if first < SHORT else [first]
        except (RuntimeError, IndexError, ValueError, TypeError):
            return []

    def _timed(self, call: Any, cold: bool = True) -> float:
        """If cold, evict its tensors from the caches first, as the other operations of a step would."""
        if cold:
            self.between.add_(1)
        self._wait()
        started = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - started

    def _kernel(self, operation: Operation) -> Any:
        arguments = [self._like(each) for each in operation.arguments]
        if isinstance(operation.arguments[0], AttentionParameters):
            arguments[1] = self._documents(operation)
        return lambda: native.call_named(operation.name, *arguments)

    def _documents(self, operation: Operation) -> Tensor:
        """The batch's documents, or as many of equal length if a method puts a prefix before each."""
        _, _, count, queries, keys = operation.arguments[:5]
        tokens = queries.sizes[0]
        lengths = list(self.lengths)
        if len(lengths) != count or sum(lengths) != tokens:
            lengths = [tokens // count] * (count - 1) + [tokens - tokens // count * (count - 1)]
        return document_layout(lengths, (keys.sizes[0] - tokens) // count)

    def _torch(self, operation: Operation) -> Any:
        """A call of the operation on new tensors."""
        library, packet, overload = operation.name.split(".")
        function = getattr(getattr(getattr(torch.ops, library), packet), overload)
        arguments = [self._like(each) for each in operation.arguments]
        keywords = {name: self._like(value) for name, value in operation.keywords}
        return lambda: function(*arguments, **keywords)

    def _like(self, value: Any) -> Any:
        """A real tensor for a shape, a list for a tuple, this device for the fake one."""
        if isinstance(value, AttentionParameters):
            return native.AttentionArguments(*value)
        if isinstance(value, TensorSpec):
            return self._tensor(value)
        if isinstance(value, tuple):
            return [self._like(each) for each in value]
        return self.device if isinstance(value, torch.device) else value

    def _tensor(self, shape: TensorSpec) -> Tensor:
        """Filled with small numbers: reading pages that were never written costs nothing, and zeros are not a
        representative load."""
        tensor = torch.empty_strided(shape.sizes, shape.strides, dtype=shape.dtype, device=self.device)
        return tensor.fill_(0.01) if shape.dtype.is_floating_point else tensor.zero_()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
