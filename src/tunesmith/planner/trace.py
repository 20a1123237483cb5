"""Traces one step of a run on fake tensors: every allocation and every operation.

The traced code is the run's own (the architecture's forward pass, our operations, autograd, the optimizer), so nothing
is
modeled: a tensor counts from the operation that creates it until its last reference is gone.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunesmith.ops import native
from tunesmith.planner.fake_mode import TensorSpec

PRODUCTS = ("aten.mm.", "aten.addmm", "aten.bmm.", "aten.baddbmm")
"""Prefixes of the names of matrix products."""


class AttentionParameters(NamedTuple):
    """The fields of `native.AttentionArguments`, in a form that can be compared and hashed."""

    kv_heads: int
    group: int
    dim: int
    scale: float
    window: int
    causal: int
    dropped: float
    seed: int


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation with the shapes of its arguments.

    Attributes:
        name: `aten::mm`, or a native kernel's name in the library.
        arguments: in order; tensors as `TensorSpec`s, lists as tuples.
        keywords: by name, in order.
        results: shapes of its results.
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...] = ()
    results: tuple[TensorSpec, ...] = ()

    @property
    def flops(self) -> float:
        """Multiplications and additions of matrix products and attention; 0 for all else, which is memory-bound."""
        if self.name.startswith(PRODUCTS):
            left, right = [each for each in self.arguments if isinstance(each, TensorSpec)][-2:]
            return 2.0 * left.numbers * right.sizes[-1]
        if self.arguments and isinstance(self.arguments[0], AttentionParameters):
            queries, keys = self.arguments[3:5]
            tokens, heads, dim = queries.sizes
            mean_keys = keys.sizes[0] / max(1, self.arguments[2])  # per document
            causal = 0.5 if self.arguments[0].causal else 1.0
            backward = self.name.startswith("attention_backward")
            passes = 2.5 if backward else 1.0  # five products instead of two (Dao 2023, section 3)
            return float(4.0 * tokens * heads * dim * mean_keys * causal * passes)
        return 0.0

    @property
    def moved(self) -> int:
        """Bytes that are read or written at least once."""
        return sum(each.bytes for each in _shapes((*self.arguments, *self.results)))

    @property
    def precision(self) -> torch.dtype:
        """The dtype of its first floating-point argument."""
        dtypes = (shape.dtype for shape in _shapes(self.arguments) if shape.dtype.is_floating_point)
        return next(dtypes, torch.float32)


def _shapes(values: Iterable[object]) -> Iterator[TensorSpec]:
    for value in values:
        if isinstance(value, TensorSpec):
            yield value
        elif isinstance(value, tuple) and not isinstance(value, AttentionParameters):
            yield from _shapes(value)


@dataclass(slots=True)
class Allocation:
    """An allocation: its bytes, and its part in the plan."""

    bytes: int
    part: str


@dataclass
class Trace:
    """The memory and operations of a pass.

    Attributes:
        events: allocations (True) and frees (False), in order.
        operations: with their counts.
    """

    events: list[tuple[bool, Allocation]] = field(default_factory=list)
    operations: Counter[Operation] = field(default_factory=Counter)

    def peak(self, first: int = 0) -> dict[str, int]:
        """Bytes by part at the peak, from event `first` on."""
        held = most = peak = 0
        for index, (is_allocation, piece) in enumerate(self.events):
            held += piece.bytes if is_allocation else -piece.bytes
            if index >= first - 1 and held > most:
                most, peak = held, index
        parts: Counter[str] = Counter()
        for is_allocation, piece in self.events[: peak + 1]:
            parts[piece.part] += piece.bytes if is_allocation else -piece.bytes
        return {part: count for part, count in parts.items() if count}


def again(events: Sequence[tuple[bool, Allocation]]) -> list[tuple[bool, Allocation]]:
    """Repeat the events with new allocations. Frees of allocations from before the events are left out."""
    copies: dict[int, Allocation] = {}
    repeated = []
    for is_allocation, piece in events:
        if is_allocation:
            copies[id(piece)] = Allocation(piece.bytes, piece.part)
        if is_allocation or id(piece) in copies:
            repeated.append((is_allocation, copies[id(piece)]))
    return repeated


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records a `Trace`. New memory counts as `part`; a workspace that autograd saves counts as `activations`."""

    def __init__(self, trace: Trace, part: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.part = part
        self._kept: dict[int, tuple[torch.UntypedStorage, Allocation]] = {}  # until the mode itself is gone
        self._temporary: dict[int, tuple[weakref.ref[torch.UntypedStorage], Allocation]] = {}

    def hold(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors that exist already and stay."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._kept:
                self._kept[storage._cdata] = (storage, Allocation(storage.nbytes(), part))
                self.trace.events.append((True, self._kept[storage._cdata][1]))
            self._kept[storage._cdata][1].part = part

    @contextmanager
    def counting_as(self, part: str) -> Iterator[None]:
        """Within the block, new memory counts as that part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    @contextmanager
    def on(self) -> Iterator["Watch"]:
        """Within the block, everything is recorded; native kernels are reported instead of called."""

        def keep(tensor: Tensor) -> Tensor:
            piece = self._piece(tensor, self.part)
            if piece.part == "workspace":
                piece.part = "activations"
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with native.report_instead_of_calling(self._kernel), hooks, self:
            yield self

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `QuickFakeMode`

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        tensors = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        for tensor in tensors:
            self._piece(tensor, self.part)
        if tensors and not getattr(function, "is_view", False):
            shapes = tuple(TensorSpec.of(each) for each in tensors)
            self._record(Operation(str(function), _plain(arguments), _plain_items(keywords), shapes))
        return result

    def _kernel(self, name: str, arguments: tuple[Any, ...]) -> None:
        self._record(Operation(name, _plain(arguments)))

    def _record(self, operation: Operation) -> None:
        self.trace.operations[operation] += 1

    def _piece(self, tensor: Tensor, part: str) -> Allocation:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._kept:
            return self._kept[key][1]
        if key not in self._temporary:
            self._temporary[key] = (weakref.ref(storage, lambda _: self._free(key)), Allocation(storage.nbytes(), part))
            self.trace.events.append((True, self._temporary[key][1]))
        return self._temporary[key][1]

    def _free(self, key: int) -> None:
        """The last reference to this memory, a tensor or the graph, is gone."""
        self.trace.events.append((False, self._temporary.pop(key)[1]))


def _plain(value: Any) -> Any:
    """A hashable value: shapes for tensors, tuples for lists."""
    if isinstance(value, Tensor):
        return TensorSpec.of(value)
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    if isinstance(value, native.AttentionArguments):
        return AttentionParameters(*(getattr(value, name) for name, _ in native.AttentionArguments._fields_))
    return value


def _plain_items(keywords: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _plain(value)) for name, value in keywords.items())
