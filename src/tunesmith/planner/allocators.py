"""Simulates memory allocators: how much they hold beyond the live tensors. A run's allocations and frees are replayed
in their order, and leave gaps."""

import bisect
from collections.abc import Sequence
from typing import Protocol

from tunesmith.planner.trace import Allocation

KIB, MIB = 2**10, 2**20


Events = Sequence[tuple[bool, Allocation]]
"""Allocations (True) and frees (False), in order."""


class Allocator(Protocol):
    """Places allocations; `peak_bytes` is the peak of the memory that it held from the system, in bytes."""

    peak_bytes: int
    makes_graph: bool

    def allocate(self, piece: Allocation) -> None: ...

    def free(self, piece: Allocation) -> None: ...

    def end_pass(self) -> None:
        """A pass has ended; what was kept for it is freed."""


Passes = Sequence[tuple[Events, bool]]
"""Allocations and frees by pass, and whether the pass builds an autograd graph."""


def resident(passes: Passes) -> int:
    """Peak bytes that glibc's malloc holds from the system."""
    return _peak(Heap(), passes)


def spanned(passes: Passes) -> int:
    """Peak bytes up to the end of the last allocation in an arena (`engine/arena.cpp`)."""
    return _peak(Arena(), passes)


def reserved(passes: Passes) -> int:
    """Peak bytes that PyTorch's allocator holds from a GPU."""
    return _peak(CachingAllocator(), passes)


def _peak(allocator: Allocator, passes: Passes) -> int:
    for events, allocator.makes_graph in passes:
        for is_allocation, piece in events:
            if is_allocation:
                allocator.allocate(piece)
            else:
                allocator.free(piece)
        allocator.end_pass()
    return allocator.peak_bytes


class _Gaps:
    """Free ranges of an address space: best fit, and adjacent ranges are merged."""

    def __init__(self) -> None:
        self._by_size: list[tuple[int, int]] = []  # (bytes, start)
        self._ends: dict[int, int] = {}  # by start
        self._starts: dict[int, int] = {}  # by end

    def put(self, start: int, end: int) -> tuple[int, int]:
        """Free a range; returns it merged with its neighbors."""
        if start in self._starts:
            start, _ = self._drop(self._starts[start])
        if end in self._ends:
            _, end = self._drop(end)
        self._ends[start], self._starts[end] = end, start
        bisect.insort(self._by_size, (end - start, start))
        return start, end

    def put_below(self, top: int, start: int, end: int) -> int:
        """The same below a top, where later allocations are cut off: a range that reaches it is merged into it. Returns
        the new top."""
        start, end = self.put(start, end)
        if end != top:
            return top
        self._drop(start)
        return start

    def best(self, size: int) -> tuple[int, int] | None:
        """The smallest range of at least that size, removed in full."""
        index = bisect.bisect_left(self._by_size, (size, -1))
        return self._drop(self._by_size[index][1]) if index < len(self._by_size) else None

    def _drop(self, start: int) -> tuple[int, int]:
        end = self._ends.pop(start)
        del self._starts[end]
        del self._by_size[bisect.bisect_left(self._by_size, (end - start, start))]
        return start, end


MAPPED = ("weights", "trained weights", "reference models")
"""Parts that stay memory-mapped in their files, or exist before the first step."""


class Arena:
    """`engine/arena.cpp`: one address range of allocations and gaps, whose pages are never returned. Sizes are
    multiples of 64 bytes, plus a header of 64. Large allocations are separate and are returned as soon as they are
    freed."""

    ALIGNED = HEADER = 64
    APART = 2**30

    def __init__(self) -> None:
        self.peak_bytes = self._top = self._farthest = self._apart = 0
        self._gaps = _Gaps()
        self._ranges: dict[int, tuple[int, int]] = {}
        self.makes_graph = False

    def allocate(self, piece: Allocation) -> None:
        size = -(-piece.bytes // self.ALIGNED) * self.ALIGNED + self.HEADER
        if piece.part in MAPPED or size - self.HEADER >= self.APART:
            self._apart += piece.bytes
        elif piece.bytes:
            self._ranges[id(piece)] = self._place(size)
        self._farthest = max(self._farthest, self._top)
        self.peak_bytes = max(self.peak_bytes, self._farthest + self._apart)

    def free(self, piece: Allocation) -> None:
        if id(piece) not in self._ranges:
            self._apart -= piece.bytes
            return
        self._top = self._gaps.put_below(self._top, *self._ranges.pop(id(piece)))

    def end_pass(self) -> None:
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
    """glibc's malloc as `engine.allocator` configures it: a heap that only grows, and large allocations apart, which
    are returned to the system. Weights stay memory-mapped in their files.

    PyTorch asks for addresses that are multiples of 64. glibc 2.36 (`_int_memalign`) then looks for a gap that is
    longer by 64 and a header, and frees the rest on both sides. Small objects fill these slivers, for example the nodes
    of the autograd graph, which live as long as the activations that they belong to. So an allocation does not fit into
    a gap left by one of the same size. That costs a tenth to two thirds of the activations. Matrix libraries have
    buffers of their own (`plan.FIRST_USE`).
    """

    APART = 32 * MIB
    ALIGNED, HEADER, LEAST = 64, 16, 32
    SMALL = 200  # bytes of a gap that small objects fill

    def __init__(self) -> None:
        self.peak_bytes = self._top = self._free_top = self._apart = 0
        self._gaps = _Gaps()
        self._ranges: dict[int, tuple[int, int]] = {}
        self._slivers: list[tuple[int, int]] = []
        self._beside: dict[int, list[tuple[int, int]]] = {}
        self.makes_graph = False

    def allocate(self, piece: Allocation) -> None:
        if piece.part == "activations":
            self._beside[id(piece)], self._slivers = self._slivers, []
        if piece.bytes >= self.APART or piece.part in MAPPED:
            self._apart += piece.bytes
        else:
            self._ranges[id(piece)] = self._place(max(self.LEAST, -(-(piece.bytes + 8) // 16) * 16))
        self.peak_bytes = max(self.peak_bytes, self._top + self._apart)

    def free(self, piece: Allocation) -> None:
        if id(piece) in self._ranges:
            self._put(*self._ranges.pop(id(piece)))
        else:
            self._apart -= piece.bytes
        for sliver in self._beside.pop(id(piece), ()):
            self._put(*sliver)

    def end_pass(self) -> None:
        for sliver in self._slivers:
            self._put(*sliver)
        self._slivers = []

    def _place(self, size: int) -> tuple[int, int]:
        """The address range of an allocation of that size, header included."""
        start, end = self._gaps.best(size + self.ALIGNED + self.LEAST) or (self._free_top, None)
        address = -(-(start + self.HEADER) // self.ALIGNED) * self.ALIGNED - self.HEADER
        if 0 < address - start < self.LEAST:
            address += self.ALIGNED
        if address > start and self.makes_graph:
            self._slivers.append((start, address))
        elif address > start:
            self._gaps.put(start, address)
        if end is None:
            self._free_top = address + size
            self._top = max(self._top, self._free_top)
        elif end - address - size >= self.SMALL:
            self._gaps.put(address + size, end)
        else:
            size = end - address
        return address, address + size

    def _put(self, start: int, end: int) -> None:
        self._free_top = self._gaps.put_below(self._free_top, start, end)


class CachingAllocator:
    """PyTorch's CUDA allocator (c10/cuda/CUDACachingAllocator.cpp, 2.11): segments of 2 MiB for allocations up to 1
    MiB, of 20 MiB for those up to 10 MiB, and beyond that of the size rounded up to 2 MiB. Segments are kept."""

    SMALL, LARGE = MIB, 10 * MIB
    SMALL_SEGMENT, LARGE_SEGMENT, ROUND = 2 * MIB, 20 * MIB, 2 * MIB

    def __init__(self) -> None:
        self.peak_bytes = self._next = 0
        self.makes_graph = False
        self._gaps = {True: _Gaps(), False: _Gaps()}
        self._ranges: dict[int, tuple[int, int]] = {}

    def allocate(self, piece: Allocation) -> None:
        size = max(512, -(-piece.bytes // 512) * 512)
        small = size <= self.SMALL
        start, end = self._gaps[small].best(size) or self._segment(size)
        rest = end - start - size
        if rest >= 512 if small else rest > self.SMALL:
            self._gaps[small].put(start + size, end)
            end = start + size
        self._ranges[id(piece)] = (start, end)

    def free(self, piece: Allocation) -> None:
        small = max(512, piece.bytes) <= self.SMALL
        self._gaps[small].put(*self._ranges.pop(id(piece)))

    def end_pass(self) -> None:
        pass

    def _segment(self, size: int) -> tuple[int, int]:
        """A new segment; an unused address between segments keeps them from being merged."""
        if size <= self.SMALL:
            segment = self.SMALL_SEGMENT
        elif size < self.LARGE:
            segment = self.LARGE_SEGMENT
        else:
            segment = -(-size // self.ROUND) * self.ROUND
        start = self._next
        self._next = start + segment + 1
        self.peak_bytes += segment
        return start, start + segment
