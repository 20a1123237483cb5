"""One step of a run, carried out on tensors without numbers: every byte that it holds, every operation that it does.

The code that is watched is the run's own (the family's forward pass, our operations, autograd, the optimiser), so
nothing is modelled: a tensor counts from the operation that makes it until its last reference is gone.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tunesmith.ops import native


@dataclass(frozen=True, slots=True)
class Shape:
    """What an operation sees of a tensor."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Shape":
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    @property
    def numbers(self) -> int:
        count = 1
        for size in self.sizes:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        return self.numbers * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation with the shapes that it works on.

    Attributes:
        name: `aten::mm`, or a native kernel's name in the library.
        arguments: in order; tensors as `Shape`s, lists as tuples.
        keywords: by name, in order.
        results: shapes of what it makes.
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...] = ()
    results: tuple[Shape, ...] = ()


@dataclass(slots=True)
class Held:
    """A piece of memory: its bytes, and which part of the plan it is of."""

    bytes: int
    part: str


@dataclass
class Trace:
    """What one pass did.

    Attributes:
        events: every piece of memory as it comes (True) and goes (False), in order.
        operations: how often each was done.
    """

    events: list[tuple[bool, Held]] = field(default_factory=list)
    operations: Counter[Operation] = field(default_factory=Counter)

    def peak(self) -> dict[str, int]:
        """Bytes by part at the moment when most are held."""
        held = most = place = 0
        for index, (comes, piece) in enumerate(self.events):
            held += piece.bytes if comes else -piece.bytes
            if held > most:
                most, place = held, index
        parts: Counter[str] = Counter()
        for comes, piece in self.events[: place + 1]:
            parts[piece.part] += piece.bytes if comes else -piece.bytes
        return {part: count for part, count in parts.items() if count}

    def at_the_end(self) -> dict[str, int]:
        """Bytes by part that are still held."""
        parts: Counter[str] = Counter()
        for comes, piece in self.events:
            parts[piece.part] += piece.bytes if comes else -piece.bytes
        return {part: count for part, count in parts.items() if count}


class Watch(TorchDispatchMode):
    """Writes a `Trace`. `part` is what new memory counts as, until autograd keeps it: then it is `activations`."""

    def __init__(self, trace: Trace, part: str) -> None:
        super().__init__()
        self.trace = trace
        self.part = part
        self._pieces: dict[int, Held] = {}

    def hold(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors that are there already, or name what they are of."""
        for tensor in tensors:
            self._piece(tensor, part).part = part

    @contextmanager
    def counting_as(self, part: str) -> Iterator[None]:
        """Within the block new memory is of that part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    @contextmanager
    def on(self) -> Iterator["Watch"]:
        """Within the block everything is written down; native kernels are named and not called."""

        def keep(tensor: Tensor) -> Tensor:
            piece = self._piece(tensor, self.part)
            if piece.part in (self.part, "workspace"):
                piece.part = "activations"
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with native.told_not_called(self._kernel), hooks, self:
            yield self

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        found = function(*arguments, **keywords)
        made = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        for tensor in made:
            self._piece(tensor, self.part)
        if not getattr(function, "is_view", False):
            results = tuple(Shape.of(each) for each in made)
            self._note(Operation(str(function), _plain(arguments), _plain_items(keywords), results))
        return found

    def _kernel(self, name: str, arguments: tuple[Any, ...]) -> None:
        self._note(Operation(name, _plain(arguments)))

    def _note(self, operation: Operation) -> None:
        self.trace.operations[operation] += 1

    def _piece(self, tensor: Tensor, part: str) -> Held:
        storage = tensor.untyped_storage()
        key = storage._cdata
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = Held(storage.nbytes(), part)
            self.trace.events.append((True, piece))
            weakref.finalize(storage, self._gone, key)
        return piece

    def _gone(self, key: int) -> None:
        self.trace.events.append((False, self._pieces.pop(key)))


def _plain(value: Any) -> Any:
    """Something that can be compared: shapes for tensors, tuples for lists."""
    if isinstance(value, Tensor):
        return Shape.of(value)
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    if isinstance(value, native.Shape):
        return tuple(getattr(value, name) for name, _ in native.Shape._fields_)
    return value


def _plain_items(keywords: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _plain(value)) for name, value in keywords.items())
