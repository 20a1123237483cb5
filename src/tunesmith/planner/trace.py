"""One step of a run, carried out on tensors without numbers: every byte that it holds, every operation that it does.

The code that is watched is the run's own (the family's forward pass, our operations, autograd, the optimizer), so
nothing is modelled: a tensor counts from the operation that makes it until its last reference is gone.
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

from tunesmith.models.fake_mode import Shape
from tunesmith.ops import native

PRODUCTS = ("aten.mm.", "aten.addmm", "aten.bmm.", "aten.baddbmm")
"""What the names of products of matrices begin with."""


class AttentionParameters(NamedTuple):
    """The fields of `native.Shape`, which cannot be compared itself."""

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

    @property
    def flops(self) -> float:
        """Multiplications and additions of products and attention; what else there is, is bound by memory."""
        if self.name.startswith(PRODUCTS):
            left, right = [each for each in self.arguments if isinstance(each, Shape)][-2:]
            return 2.0 * left.numbers * right.sizes[-1]
        if self.arguments and isinstance(self.arguments[0], AttentionParameters):
            queries, keys = self.arguments[3:5]
            tokens, heads, dim = queries.sizes
            seen = keys.sizes[0] / max(1, self.arguments[2])  # a document's keys, on average
            causal = 0.5 if self.arguments[0].causal else 1.0
            passes = 2.5 if self.name == "attention_backward" else 1.0  # five products for two (Dao 2023, section 3)
            return float(4.0 * tokens * heads * dim * seen * causal * passes)
        return 0.0

    @property
    def moved(self) -> int:
        """Bytes read and written at least once."""
        return sum(each.bytes for each in _shapes((*self.arguments, *self.results)))

    @property
    def precision(self) -> torch.dtype:
        """Of the first numbers that it reads."""
        kinds = (shape.dtype for shape in _shapes(self.arguments) if shape.dtype.is_floating_point)
        return next(kinds, torch.float32)


def _shapes(values: Iterable[object]) -> Iterator[Shape]:
    for value in values:
        if isinstance(value, Shape):
            yield value
        elif isinstance(value, tuple) and not isinstance(value, AttentionParameters):
            yield from _shapes(value)


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

    def peak(self, first: int = 0) -> dict[str, int]:
        """Bytes by part at the moment, from that event on, when most are held."""
        held = most = place = 0
        for index, (comes, piece) in enumerate(self.events):
            held += piece.bytes if comes else -piece.bytes
            if index >= first - 1 and held > most:
                most, place = held, index
        parts: Counter[str] = Counter()
        for comes, piece in self.events[: place + 1]:
            parts[piece.part] += piece.bytes if comes else -piece.bytes
        return {part: count for part, count in parts.items() if count}


def again(events: Sequence[tuple[bool, Held]]) -> list[tuple[bool, Held]]:
    """The same events once more: of what comes, other pieces; of what goes, those, or what had stayed."""
    copies: dict[int, Held] = {}
    found = []
    for comes, piece in events:
        if comes:
            copies[id(piece)] = Held(piece.bytes, piece.part)
        if comes or id(piece) in copies:
            found.append((comes, copies[id(piece)]))
    return found


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes a `Trace`. `part` is what new memory counts as; a workspace that autograd keeps is `activations`."""

    def __init__(self, trace: Trace, part: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.part = part
        self._kept: dict[int, tuple[torch.UntypedStorage, Held]] = {}  # as long as the watch
        self._passing: dict[int, tuple[weakref.ref[torch.UntypedStorage], Held]] = {}

    def hold(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors that are there already, and stay."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._kept:
                self._kept[storage._cdata] = (storage, Held(storage.nbytes(), part))
                self.trace.events.append((True, self._kept[storage._cdata][1]))
            self._kept[storage._cdata][1].part = part

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
        found = function(*arguments, **keywords)
        made = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        for tensor in made:
            self._piece(tensor, self.part)
        if made and not getattr(function, "is_view", False):
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
        if key in self._kept:
            return self._kept[key][1]
        if key not in self._passing:
            self._passing[key] = (weakref.ref(storage, lambda _: self._let_go(key)), Held(storage.nbytes(), part))
            self.trace.events.append((True, self._passing[key][1]))
        return self._passing[key][1]

    def _let_go(self, key: int) -> None:
        """The last that had a hand on this memory, a tensor or the graph, is gone."""
        self.trace.events.append((False, self._passing.pop(key)[1]))


def _plain(value: Any) -> Any:
    """Something that can be compared: shapes for tensors, tuples for lists."""
    if isinstance(value, Tensor):
        return Shape.of(value)
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    if isinstance(value, native.Shape):
        return AttentionParameters(*(getattr(value, name) for name, _ in native.Shape._fields_))
    return value


def _plain_items(keywords: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _plain(value)) for name, value in keywords.items())
