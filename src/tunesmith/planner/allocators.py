"""What allocators hold beside what is asked of them: pieces come and go in the run's own order, and leave gaps."""

import bisect
from collections.abc import Sequence
from typing import Protocol

from tunesmith.planner.trace import Held

KIB, MIB = 2**10, 2**20


Events = Sequence[tuple[bool, Held]]
"""Pieces of memory as they come (True) and go (False)."""


class Allocator(Protocol):
    """Places pieces of memory; `most` is what it held of the system's at once."""

    most: int
    makes_graph: bool

    def take(self, piece: Held) -> None: ...

    def give(self, piece: Held) -> None: ...

    def pause(self) -> None:
        """A pass is over, and what was kept for it is gone."""


Passes = Sequence[tuple[Events, bool]]
"""What comes and goes pass by pass, and whether the pass makes a graph that a backward pass goes over."""


def resident(passes: Passes) -> int:
    """Bytes that glibc's malloc has of the system when it has most."""
    return _most(Heap(), passes)


def spanned(passes: Passes) -> int:
    """Bytes up to the end of the last piece in an arena (`engine/arena.cpp`) when that is farthest."""
    return _most(Arena(), passes)


def reserved(passes: Passes) -> int:
    """Bytes that PyTorch's allocator has of a GPU when it has most."""
    return _most(CachingAllocator(), passes)


def _most(allocator: Allocator, passes: Passes) -> int:
    for events, allocator.makes_graph in passes:
        for comes, piece in events:
            if comes:
                allocator.take(piece)
            else:
                allocator.give(piece)
        allocator.pause()
    return allocator.most


class _Gaps:
    """Free stretches of an address space: the smallest that is large enough is taken, neighbors become one."""

    def __init__(self) -> None:
        self._by_size: list[tuple[int, int]] = []  # (bytes, start)
        self._ends: dict[int, int] = {}  # by start
        self._starts: dict[int, int] = {}  # by end

    def put(self, start: int, end: int) -> tuple[int, int]:
        """A stretch is free now; with its neighbors it is the one that is returned."""
        if start in self._starts:
            start, _ = self._drop(self._starts[start])
        if end in self._ends:
            _, end = self._drop(end)
        self._ends[start], self._starts[end] = end, start
        bisect.insort(self._by_size, (end - start, start))
        return start, end

    def put_below(self, top: int, start: int, end: int) -> int:
        """The same below a top, from which later pieces are cut: what reaches it becomes part of it. Returns it."""
        start, end = self.put(start, end)
        if end != top:
            return top
        self._drop(start)
        return start

    def best(self, size: int) -> tuple[int, int] | None:
        """The smallest stretch of at least that size, taken out whole."""
        place = bisect.bisect_left(self._by_size, (size, -1))
        return self._drop(self._by_size[place][1]) if place < len(self._by_size) else None

    def _drop(self, start: int) -> tuple[int, int]:
        end = self._ends.pop(start)
        del self._starts[end]
        del self._by_size[bisect.bisect_left(self._by_size, (end - start, start))]
        return start, end


MAPPED = ("weights", "trained weights", "reference models")
"""Parts that stay in their files, mapped, or are there before the first step."""


class Arena:
    """`engine/arena.cpp`: pieces and gaps in one stretch, whose pages stay, in multiples of 64 bytes with a header of
    as many; large pieces apart, which go at once."""

    ALIGNED = HEADER = 64
    APART = 2**30

    def __init__(self) -> None:
        self.most = self._top = self._farthest = self._apart = 0
        self._gaps = _Gaps()
        self._places: dict[int, tuple[int, int]] = {}
        self.makes_graph = False

    def take(self, piece: Held) -> None:
        size = -(-piece.bytes // self.ALIGNED) * self.ALIGNED + self.HEADER
        if piece.part in MAPPED or size - self.HEADER >= self.APART:
            self._apart += piece.bytes
        elif piece.bytes:
            self._places[id(piece)] = self._place(size)
        self._farthest = max(self._farthest, self._top)
        self.most = max(self.most, self._farthest + self._apart)

    def give(self, piece: Held) -> None:
        if id(piece) not in self._places:
            self._apart -= piece.bytes
            return
        self._top = self._gaps.put_below(self._top, *self._places.pop(id(piece)))

    def pause(self) -> None:
        pass

    def _place(self, size: int) -> tuple[int, int]:
        gap = self._gaps.best(size)
        if gap is None:
            self._top += size
            return self._top - size, self._top
        start, end = gap
        if end - start - size > self.HEADER:
            self._gaps.put(start + size, end)
            end = start + size
        return start, end


class Heap:
    """glibc's malloc as `engine.allocator` sets it: a heap that grows and is not given back, and large pieces apart,
    which are. Weights stay in their files, mapped.

    PyTorch asks for addresses that are multiples of 64. glibc 2.36 (`_int_memalign`) then looks for a gap that is
    longer by that and a header, and gives back what stands out on both sides. Such slivers go to small objects, the
    nodes of the graph for one, which live as long as the activations that they stand for: so a piece does not fit into
    the gap that one of its own size has left. That costs a tenth to two thirds of the activations. Matrix libraries
    have buffers of their own (`plan.FIRST_USE`).
    """

    APART = 32 * MIB
    ALIGNED, HEADER, LEAST = 64, 16, 32
    SMALL = 200  # a gap that small objects fill

    def __init__(self) -> None:
        self.most = self._top = self._free_top = self._apart = 0
        self._gaps = _Gaps()
        self._places: dict[int, tuple[int, int]] = {}
        self._slivers: list[tuple[int, int]] = []
        self._beside: dict[int, list[tuple[int, int]]] = {}
        self.makes_graph = False

    def take(self, piece: Held) -> None:
        if piece.part == "activations":
            self._beside[id(piece)], self._slivers = self._slivers, []
        if piece.bytes >= self.APART or piece.part in MAPPED:
            self._apart += piece.bytes
        else:
            self._places[id(piece)] = self._place(max(self.LEAST, -(-(piece.bytes + 8) // 16) * 16))
        self.most = max(self.most, self._top + self._apart)

    def give(self, piece: Held) -> None:
        if id(piece) in self._places:
            self._put(*self._places.pop(id(piece)))
        else:
            self._apart -= piece.bytes
        for sliver in self._beside.pop(id(piece), ()):
            self._put(*sliver)

    def pause(self) -> None:
        for sliver in self._slivers:
            self._put(*sliver)
        self._slivers = []

    def _place(self, size: int) -> tuple[int, int]:
        """Where a piece of that size, header included, comes to lie."""
        start, end = self._gaps.best(size + self.ALIGNED + self.LEAST) or (self._free_top, None)
        place = -(-(start + self.HEADER) // self.ALIGNED) * self.ALIGNED - self.HEADER
        if 0 < place - start < self.LEAST:
            place += self.ALIGNED
        if place > start and self.makes_graph:
            self._slivers.append((start, place))
        elif place > start:
            self._gaps.put(start, place)
        if end is None:
            self._free_top = place + size
            self._top = max(self._top, self._free_top)
        elif end - place - size >= self.SMALL:
            self._gaps.put(place + size, end)
        else:
            size = end - place
        return place, place + size

    def _put(self, start: int, end: int) -> None:
        self._free_top = self._gaps.put_below(self._free_top, start, end)


class CachingAllocator:
    """PyTorch's for CUDA (c10/cuda/CUDACachingAllocator.cpp, 2.11): segments of 2 MiB for pieces up to 1 MiB, of 20 MiB
    for those up to 10 MiB, and of the size itself, rounded up to 2 MiB, beyond; segments are kept."""

    SMALL, LARGE = MIB, 10 * MIB
    SMALL_SEGMENT, LARGE_SEGMENT, ROUND = 2 * MIB, 20 * MIB, 2 * MIB

    def __init__(self) -> None:
        self.most = self._next = 0
        self.makes_graph = False
        self._gaps = {True: _Gaps(), False: _Gaps()}
        self._places: dict[int, tuple[int, int]] = {}

    def take(self, piece: Held) -> None:
        size = max(512, -(-piece.bytes // 512) * 512)
        small = size <= self.SMALL
        start, end = self._gaps[small].best(size) or self._segment(size)
        rest = end - start - size
        if rest >= 512 if small else rest > self.SMALL:
            self._gaps[small].put(start + size, end)
            end = start + size
        self._places[id(piece)] = (start, end)

    def give(self, piece: Held) -> None:
        small = max(512, piece.bytes) <= self.SMALL
        self._gaps[small].put(*self._places.pop(id(piece)))

    def pause(self) -> None:
        pass

    def _segment(self, size: int) -> tuple[int, int]:
        """A new one; an unused address between segments keeps them from becoming one."""
        if size <= self.SMALL:
            whole = self.SMALL_SEGMENT
        elif size < self.LARGE:
            whole = self.LARGE_SEGMENT
        else:
            whole = -(-size // self.ROUND) * self.ROUND
        start = self._next
        self._next = start + whole + 1
        self.most += whole
        return start, start + whole
