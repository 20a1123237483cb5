"""How long operations take: on this machine each is done and timed, with tensors of the same shapes; on others by the
rates of their table, whichever of products and memory takes longer (Williams et al. 2009, the roofline)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tunesmith.engine.allocator import keeping_freed_memory
from tunesmith.models.fake_mode import Shape
from tunesmith.ops import native
from tunesmith.ops.document_attention import document_layout
from tunesmith.planner.trace import PRODUCTS, AttentionParameters, Operation

OVERHEAD = 45e-6
"""Seconds of Python and autograd around an operation on a CPU, beside its own call: what was missing of a model whose
operations are small (benchmarks/plan_accuracy.py, llama-5m)."""

NEAR = 2 * 2**20
"""Bytes that the operation before has left in a core's own cache."""

CACHES = 64 * 2**20
"""Bytes that are written between two timings: more than a core's share of its processor's caches."""

LARGE, LARGE_FLOPS = 2**29, 2e11
"""Bytes and arithmetic of operations that are not tried."""

SLOW, SLOW_FLOPS = 1.0, 1e10
"""Seconds of a product that is not tried either, since it has the rate of its like; and arithmetic below which none
takes so long."""

ROUNDS, MOST_ROUNDS, ENOUGH = 3, 12, 4.0
"""How often operations are timed: at least, at most, and for about how many seconds if all are new; what else the
machine does comes and goes within seconds."""

SHORT, LONG = 0.02, 1.0
"""Seconds of an operation that is timed twice in a round, and of one that has been timed enough."""


@dataclass
class OpTimer:
    """Times operations on a device of this machine, each kind once. Our kernels for CPUs stand for their like on a
    GPU, by rates.

    Attributes:
        lengths: of the documents that attention goes over.
        device: where.
        seconds: what was measured.
        rates: arithmetic and bytes a second, where they were asked for.
        between: what is written between two timings, while there are any.
    """

    lengths: Sequence[int]
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    seconds: dict[Operation, float] = field(default_factory=dict)
    rates: dict[torch.dtype, tuple[float, float]] = field(default_factory=dict)
    between: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    @lru_cache(maxsize=1)
    def of(cls, lengths: tuple[int, ...], device: torch.device, threads: int) -> "OpTimer":
        """The same one for plans of the same rows, which mostly have operations in common, with as many threads."""
        return cls(lengths, device)

    @keeping_freed_memory()  # as a run does
    def total(self, operations: Mapping[Operation, float], recorded: bool = True) -> float:
        """Seconds of all of them, one after another; `recorded`: with modules and autograd around them, as in a pass,
        and not one by one, as in an optimizer's step."""
        if new := [each for each in operations if each not in self.seconds]:
            self._learn(new, ENOUGH * len(new) / len(operations))
        around = OVERHEAD if recorded else 0.0
        return sum(count * (self.seconds[each] + around) for each, count in operations.items())

    def _learn(self, operations: Sequence[Operation], enough: float) -> None:
        """Time each kind in rounds over all of them, for about so many seconds, so that what else the machine does for
        a second is not taken for what an operation takes."""
        self.between = torch.zeros(CACHES // 4)
        timed: dict[Operation, list[float]] = {each: [] for each in operations if not self._is_large(each)}
        started = time.perf_counter()
        for number in range(MOST_ROUNDS):
            if number >= ROUNDS and time.perf_counter() - started > enough:
                break
            for each, found in timed.items():
                if sum(found) < LONG:
                    found += self._timings(each)
        for each in operations:
            taken = timed.get(each)
            self.seconds[each] = median(taken) if taken else self._by_rates(each)
        self.between = torch.empty(0)

    def _is_large(self, operation: Operation) -> bool:
        """Whether it takes too long or too much memory to be tried, or is a CPU's kernel on a GPU."""
        elsewhere = self.device.type != "cpu" and "." not in operation.name
        if operation.moved > LARGE or operation.flops > LARGE_FLOPS or elsewhere:
            return True
        if operation.flops < SLOW_FLOPS or not operation.name.startswith(PRODUCTS):
            return False
        return operation.flops > SLOW * self._rates(operation.precision)[0]

    def _by_rates(self, operation: Operation) -> float:
        """Seconds of one that is not tried: whichever of arithmetic and memory takes longer, at the rates of smaller
        ones."""
        flops, memory = self._rates(operation.precision)
        return max(operation.flops / flops, operation.moved / memory)

    def _rates(self, dtype: torch.dtype) -> tuple[float, float]:
        """Arithmetic and bytes a second, by a product and an addition of usual size."""
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
        """Seconds of one, tried twice if it is short; none where it cannot be done by itself."""
        act = self._torch(operation) if "." in operation.name else self._kernel(operation)
        cold = operation.moved > NEAR
        try:
            act()  # the first one makes code for the shape
            once = self._timed(act, cold)
            return [once, self._timed(act, cold)] if once < SHORT else [once]
        except (RuntimeError, IndexError, ValueError, TypeError):
            return []

    def _timed(self, act: Any, cold: bool = True) -> float:
        """If cold, with nothing of its tensors in the caches, as is the case after the other operations of a step."""
        if cold:
            self.between.add_(1)
        self._wait()
        started = time.perf_counter()
        act()
        self._wait()
        return time.perf_counter() - started

    def _kernel(self, operation: Operation) -> Any:
        given = [self._like(each) for each in operation.arguments]
        if isinstance(operation.arguments[0], AttentionParameters):
            given[1] = self._documents(operation)
        return lambda: native.call_named(operation.name, *given)

    def _documents(self, operation: Operation) -> Tensor:
        """The batch's documents, or as many of one length where a method puts something before each."""
        _, _, count, queries, keys = operation.arguments[:5]
        tokens = queries.sizes[0]
        lengths = list(self.lengths)
        if len(lengths) != count or sum(lengths) != tokens:
            lengths = [tokens // count] * (count - 1) + [tokens - tokens // count * (count - 1)]
        return document_layout(lengths, (keys.sizes[0] - tokens) // count)

    def _torch(self, operation: Operation) -> Any:
        """A call of it, on new tensors."""
        library, packet, overload = operation.name.split(".")
        function = getattr(getattr(getattr(torch.ops, library), packet), overload)
        given = [self._like(each) for each in operation.arguments]
        named = {name: self._like(value) for name, value in operation.keywords}
        return lambda: function(*given, **named)

    def _like(self, value: Any) -> Any:
        """A tensor with numbers for a shape, a list for a tuple, this device for the one that was imagined."""
        if isinstance(value, AttentionParameters):
            return native.Shape(*value)
        if isinstance(value, Shape):
            return self._tensor(value)
        if isinstance(value, tuple):
            return [self._like(each) for each in value]
        return self.device if isinstance(value, torch.device) else value

    def _tensor(self, shape: Shape) -> Tensor:
        """Filled with small numbers: pages that were never written to cost nothing to read, and zeros are no fair
        load."""
        tensor = torch.empty_strided(shape.sizes, shape.strides, dtype=shape.dtype, device=self.device)
        return tensor.fill_(0.01) if shape.dtype.is_floating_point else tensor.zero_()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
