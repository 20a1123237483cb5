"""Where allocators place memory: by hand for each rule, and against a plain search over all ranges."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.planner.allocators import (
    MAPPED,
    Allocator,
    Arena,
    CachingAllocator,
    Heap,
    Passes,
    _Gaps,
    reserved,
    resident,
    spanned,
)
from tunesmith.planner.trace import Allocation

KIB, MIB, GIB = 2**10, 2**20, 2**30
few = settings(max_examples=60)


def up(size: int, step: int) -> int:
    return (size + step - 1) // step * step


def peaks_after(allocator: Allocator, *steps: tuple[str, Allocation]) -> list[int]:
    """The allocator's peak after each step: "+" allocates a piece, "-" frees it."""
    peaks = []
    for action, piece in steps:
        (allocator.allocate if action == "+" else allocator.free)(piece)
        peaks.append(allocator.peak_bytes)
    return peaks


def piece(size: int, part: str = "workspace") -> Allocation:
    return Allocation(size, part)


# --- gaps ----------------------------------------------------------------------------------------------------------


def test_the_smallest_fitting_gap_is_used_and_the_first_of_equals() -> None:
    gaps = _Gaps()
    for start, end in ((0, 100), (200, 240), (300, 340), (500, 530)):
        assert gaps.put(start, end) == (start, end)
    assert gaps.best(31) == (200, 240)
    assert gaps.best(31) == (300, 340)
    assert gaps.best(31) == (0, 100)
    assert gaps.best(31) is None
    assert gaps.best(30) == (500, 530)


def test_a_gap_is_merged_with_both_neighbors() -> None:
    gaps = _Gaps()
    gaps.put(0, 10), gaps.put(20, 30), gaps.put(50, 60)
    assert gaps.put(10, 20) == (0, 30)
    assert gaps.put(40, 50) == (40, 60)
    assert gaps.best(21) == (0, 30)
    assert gaps.best(1) == (40, 60)
    assert gaps.best(1) is None


def test_a_gap_that_reaches_the_top_lowers_it_and_disappears() -> None:
    gaps = _Gaps()
    assert gaps.put_below(100, 20, 40) == 100
    assert gaps.put_below(100, 60, 80) == 100
    assert gaps.put_below(100, 80, 100) == 60
    assert gaps.best(1) == (20, 40)
    assert gaps.best(1) is None


# --- the arena -----------------------------------------------------------------------------------------------------


def test_the_arena_rounds_up_to_64_bytes_and_adds_a_64_byte_header() -> None:
    for size, taken in ((1, 128), (64, 128), (65, 192), (1000, 1088)):
        assert spanned([([(True, piece(size))], False)]) == taken


def test_the_arena_splits_a_gap_only_if_more_than_a_header_is_left() -> None:
    first, stop = piece(256), piece(64)  # 320, 128
    arena = Arena()
    assert peaks_after(arena, ("+", first), ("+", stop), ("-", first)) == [320, 448, 448]
    # 128 of 320 leave 192, and 128 of those leave 64: no more than a header, so it is not split off
    assert peaks_after(arena, ("+", piece(64)), ("+", piece(64)), ("+", piece(1))) == [448, 448, 576]
    assert peaks_after(arena, ("-", stop), ("+", piece(128))) == [576, 768]  # 128 behind it are free, not 192


def test_the_arena_keeps_its_pages_when_the_last_pieces_are_freed() -> None:
    one, other = piece(936), piece(1960)  # 1024, 2048 with their headers
    arena = Arena()
    assert peaks_after(arena, ("+", one), ("+", other), ("-", other), ("-", one)) == [1024, 3072, 3072, 3072]
    weights = piece(5000, "weights")
    assert peaks_after(arena, ("+", weights)) == [3072 + 5000]  # memory-mapped: beside the arena, not rounded
    later = [("+", piece(3100)), ("-", weights), ("+", piece(3000, "trained weights"))]
    assert peaks_after(arena, *later) == [3200 + 5000] * 3  # the top was back at 0: 3,100 take 3,136 and a header


def test_the_arena_maps_a_gibibyte_separately_and_unmaps_it() -> None:
    large, almost = piece(GIB - 63), piece(GIB - 64)
    assert peaks_after(Arena(), ("+", large), ("-", large), ("+", piece(64))) == [GIB - 63] * 3
    assert peaks_after(Arena(), ("+", almost), ("-", almost), ("+", piece(64))) == [GIB] * 3


def test_an_empty_piece_takes_no_space() -> None:
    nothing = piece(0)
    assert peaks_after(Arena(), ("+", nothing), ("-", nothing), ("+", piece(64))) == [0, 0, 128]


# --- PyTorch's allocator for CUDA ------------------------------------------------------------------------------------


def test_segment_sizes_follow_pytorchs_source() -> None:
    """kMinBlockSize 512, kSmallSize 1 MiB, kSmallBuffer 2 MiB, kLargeBuffer 20 MiB, kMinLargeAlloc 10 MiB, kRoundLarge
    2 MiB (c10/cuda/CUDACachingAllocator.cpp)."""
    for size, segment in (
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (21 * MIB, 22 * MIB),
    ):
        assert reserved([([(True, piece(size))], False)]) == segment, size


def test_small_pieces_share_a_segment_down_to_512_bytes() -> None:
    half = MIB + 0
    steps = [("+", piece(half)), ("+", piece(half - 512)), ("+", piece(512)), ("+", piece(1))]
    assert peaks_after(CachingAllocator(), *steps) == [2 * MIB, 2 * MIB, 2 * MIB, 4 * MIB]
    # a rest below 512 bytes cannot exist, since sizes are rounded to 512
    rounded = [("+", piece(MIB // 16 - 511)) for _ in range(32)] + [("+", piece(1))]
    assert peaks_after(CachingAllocator(), *rounded)[-2:] == [2 * MIB, 4 * MIB]


def test_the_rest_of_a_large_segment_is_reused_only_above_a_mebibyte() -> None:
    kept = CachingAllocator()
    assert peaks_after(kept, ("+", piece(9 * MIB)), ("+", piece(9 * MIB))) == [20 * MIB, 20 * MIB]
    assert peaks_after(kept, ("+", piece(2 * MIB))) == [20 * MIB]  # 2 of 20 MiB are left, more than one
    split = CachingAllocator()
    assert peaks_after(split, ("+", piece(19 * MIB)), ("+", piece(MIB + 512))) == [20 * MIB, 40 * MIB]
    lost = CachingAllocator()
    seven = [piece(7 * MIB), piece(7 * MIB)]
    assert peaks_after(lost, ("+", seven[0]), ("+", seven[1]), ("+", piece(5 * MIB))) == [20 * MIB] * 3
    # 6 MiB were left, 5 are used: the rest of exactly 1 MiB is not split off
    assert peaks_after(lost, ("+", piece(MIB + 512))) == [40 * MIB]


def test_small_and_large_pieces_never_share_a_segment() -> None:
    small, large = piece(MIB), piece(2 * MIB)
    allocator = CachingAllocator()
    steps = [("+", large), ("-", large), ("+", small), ("-", small)]
    assert peaks_after(allocator, *steps) == [20 * MIB, 20 * MIB, 22 * MIB, 22 * MIB]
    assert peaks_after(allocator, ("+", piece(2 * MIB)), ("+", piece(KIB))) == [22 * MIB, 22 * MIB]


def test_segments_are_kept_and_never_merged() -> None:
    one, other = piece(12 * MIB), piece(12 * MIB)
    allocator = CachingAllocator()
    steps = [("+", one), ("+", other), ("-", one), ("-", other), ("+", piece(24 * MIB)), ("+", piece(11 * MIB + 1))]
    assert peaks_after(allocator, *steps) == [12 * MIB, 24 * MIB, 24 * MIB, 24 * MIB, 48 * MIB, 48 * MIB]


# --- glibc's heap --------------------------------------------------------------------------------------------------


def test_the_heap_aligns_to_64_bytes_with_a_header_of_16() -> None:
    heap = Heap()
    # at 48, so that the data after the header is at 64; then at 1,136, since 16 bytes are too few for a gap
    assert peaks_after(heap, ("+", piece(1000))) == [1056]
    assert peaks_after(heap, ("+", piece(100))) == [1136 + 112]
    assert peaks_after(heap, ("+", piece(1))) == [1328 + 32]  # no piece is smaller than 32


def test_a_rest_of_200_bytes_becomes_a_gap_and_a_smaller_one_does_not() -> None:
    def grown(size: int) -> int:
        """How much the top rises for 25 bytes, after a piece of `size` was placed into a gap of 1,136 bytes."""
        heap = Heap()
        first = piece(1000)
        peaks_after(
            heap, ("+", first), ("+", piece(1000)), ("-", first)
        )  # the gap includes 48 before the first and 80 behind it
        before = peaks_after(heap, ("+", piece(size)))[-1]
        return peaks_after(heap, ("+", piece(25)))[-1] - before

    assert grown(872) == 0  # 1,136 - 48 - 880 leave 208
    assert grown(888) == 128  # 192 are left and wasted: 80 up to the next multiple of 64, and 48


def test_large_pieces_and_weights_are_outside_the_heap_and_returned_when_freed() -> None:
    large = piece(32 * MIB)
    assert peaks_after(Heap(), ("+", large), ("-", large), ("+", piece(1000))) == [32 * MIB] * 3
    assert peaks_after(Heap(), ("+", piece(32 * MIB - 1))) == [48 + up(32 * MIB + 7, 16)]
    for part in MAPPED:
        weights = piece(777, part)
        assert peaks_after(Heap(), ("+", weights), ("+", piece(1000)), ("-", weights)) == [
            777,
            777 + 1056,
            777 + 1056,
        ]


def test_slivers_are_held_until_their_activation_is_freed_or_the_pass_ends() -> None:
    """Two pieces of 10,016 bytes, header included: 48 + 10,016 + 32 + 10,016 = 20,112."""

    def room(part: str, *, graph: bool, end: bool, free: bool) -> int:
        """The largest gap in the end, after the first piece was freed."""
        heap = Heap()
        heap.makes_graph = graph
        first, kept, last = piece(10_000), piece(10_000, part), piece(10_000)
        assert peaks_after(heap, ("+", first), ("+", kept), ("+", last), ("-", first))[1] == 20_112
        if free:
            heap.free(kept)
        if end:
            heap.end_pass()
        return max(size for size, _ in heap._gaps._by_size)

    assert room("activations", graph=True, end=False, free=False) == 10_016  # the slivers on both sides are held
    assert room("activations", graph=True, end=True, free=False) == 10_048  # the sliver behind it is free
    assert room("workspace", graph=True, end=True, free=False) == 10_096  # both slivers are free
    assert room("activations", graph=False, end=False, free=False) == 10_096  # nothing holds the slivers
    assert room("activations", graph=True, end=False, free=True) == 10_064  # the sliver before it is free
    assert room("activations", graph=True, end=True, free=True) == 20_112 + 32  # everything up to the last piece


def test_memory_freed_in_one_pass_is_reused_in_the_next() -> None:
    first, second = piece(10_000), piece(10_000)
    graph = [(True, first), (True, second), (False, first), (False, second)]
    assert resident([(graph, True)]) == 20_112
    assert resident([(graph, True), ([(True, piece(20_100))], False)]) == 48 + up(20_108, 16)


# --- against a plain search ------------------------------------------------------------------------------------------


@dataclass
class Range:
    start: int
    end: int
    free: bool


class Plain:
    """All ranges of an address space in order; free neighbors are joined after each step."""

    def __init__(self) -> None:
        self.all: list[Range] = []

    def best(self, size: int) -> Range | None:
        fits = [each for each in self.all if each.free and each.end - each.start >= size]
        return min(fits, key=lambda each: (each.end - each.start, each.start), default=None)

    def free(self, start: int, end: int) -> None:
        self.all = [each for each in self.all if each.free or not (start <= each.start and each.end <= end)]
        self.all.append(Range(start, end, True))
        self.join()

    def hold(self, start: int, end: int) -> None:
        self.all.append(Range(start, end, False))
        self.all.sort(key=lambda each: each.start)

    def join(self) -> None:
        self.all.sort(key=lambda each: each.start)
        joined: list[Range] = []
        for each in self.all:
            if joined and joined[-1].free and each.free and joined[-1].end == each.start:
                joined[-1].end = each.end
            else:
                joined.append(each)
        self.all = joined

    def cut(self, top: int) -> int:
        """The new top, after a free range below it was merged into it."""
        if self.all and self.all[-1].free and self.all[-1].end == top:
            return self.all.pop().start
        return top


@dataclass
class Step:
    """An allocation or a free, in a pass that builds a graph or not; `ends`: the last of its pass."""

    is_allocation: bool
    number: int
    graph: bool
    ends: bool


@dataclass
class Sequence:
    """Pieces by number: their sizes, whether they are activations, and the steps that allocate and free them."""

    sizes: list[int]
    kept: list[bool]
    steps: list[Step]

    def passes(self) -> Passes:
        pieces = [Allocation(size, "activations" if kept else "workspace") for size, kept in zip(self.sizes, self.kept)]  # noqa: B905
        passes: list[tuple[list[tuple[bool, Allocation]], bool]] = [([], self.steps[0].graph)]
        for step in self.steps:
            passes[-1][0].append((step.is_allocation, pieces[step.number]))
            passes[-1] = (passes[-1][0], step.graph)
            if step.ends:
                passes.append(([], False))
        return passes


def plain_arena(sequence: Sequence) -> int:
    space, top, farthest = Plain(), 0, 0
    ranges: dict[int, tuple[int, int]] = {}
    for step in sequence.steps:
        if step.is_allocation:
            need = up(sequence.sizes[step.number], 64) + 64
            gap = space.best(need)
            if gap is None:
                start, end, top = top, top + need, top + need
            else:
                space.all.remove(gap)
                start, end = gap.start, gap.end
                if end - start > need + 64:
                    space.all.append(Range(start + need, end, True))
                    end = start + need
            space.hold(start, end)
            ranges[step.number] = (start, end)
        else:
            space.free(*ranges.pop(step.number))
            top = space.cut(top)
        farthest = max(farthest, top)
    return farthest


def plain_caching(sequence: Sequence) -> int:
    spaces = {True: Plain(), False: Plain()}
    ranges: dict[int, tuple[int, int]] = {}
    at = held = 0
    for step in sequence.steps:
        size = max(512, up(sequence.sizes[step.number], 512))
        small = size <= MIB
        space = spaces[small]
        if not step.is_allocation:
            space.free(*ranges.pop(step.number))
            continue
        gap = space.best(size)
        if gap is None:
            segment = 2 * MIB if small else 20 * MIB if size < 10 * MIB else up(size, 2 * MIB)
            start, end = at, at + segment
            at, held = end + 1, held + segment
        else:
            space.all.remove(gap)
            start, end = gap.start, gap.end
        if end - start - size >= (512 if small else MIB + 1):
            space.all.append(Range(start + size, end, True))
            end = start + size
        space.hold(start, end)
        ranges[step.number] = (start, end)
    return held


def plain_heap(sequence: Sequence) -> int:
    """The sliver before a piece becomes a gap, or is held by the next activation if a graph is built."""
    space, top, most = Plain(), 0, 0
    ranges: dict[int, tuple[int, int]] = {}
    waiting: list[tuple[int, int]] = []
    beside: dict[int, list[tuple[int, int]]] = {}
    for step in sequence.steps:
        number = step.number
        if step.is_allocation:
            if sequence.kept[number]:
                beside[number], waiting = waiting, []
            size = max(32, up(sequence.sizes[number] + 8, 16))
            gap = space.best(size + 64 + 32)
            if gap is not None:
                space.all.remove(gap)
            start = top if gap is None else gap.start
            address = up(start + 16, 64) - 16
            if 0 < address - start < 32:
                address += 64
            end = address + size
            if gap is None:
                top = end
            elif gap.end - end >= 200:
                space.all.append(Range(end, gap.end, True))
            else:
                end = gap.end
            if address > start:
                space.all.append(Range(start, address, not step.graph))
                if step.graph:
                    waiting.append((start, address))
            space.hold(address, end)
            space.join()
            ranges[number] = (address, end)
            most = max(most, top)
        else:
            for freed in (ranges.pop(number), *beside.pop(number, [])):
                space.free(*freed)
                top = space.cut(top)
        if step.ends:
            for freed in waiting:
                space.free(*freed)
                top = space.cut(top)
            waiting = []
    return most


@st.composite
def sequences(draw: st.DrawFn, largest: int) -> Sequence:
    """Pieces are allocated one by one; after each, one of those that are allocated may be freed."""
    sizes = draw(st.lists(st.integers(1, largest), min_size=4, max_size=40))
    kept = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    steps: list[Step] = []
    allocated: list[int] = []
    graph = draw(st.booleans())
    for number in range(len(sizes)):
        steps.append(Step(True, number, graph, False))
        allocated.append(number)
        drop = draw(st.integers(-len(allocated), len(allocated) - 1))
        if drop >= 0:
            steps.append(Step(False, allocated.pop(drop), graph, False))
        if draw(st.integers(0, 7)) == 0:
            steps[-1].ends = True
            graph = not graph
    return Sequence(sizes, kept, steps)


@pytest.mark.parametrize(
    ("ours", "plain", "largest"),
    [
        pytest.param(spanned, plain_arena, 3_000, id="arena"),
        pytest.param(reserved, plain_caching, 24 * MIB, id="PyTorch's for CUDA, large pieces"),
        pytest.param(reserved, plain_caching, 2 * MIB, id="PyTorch's for CUDA, small pieces"),
        pytest.param(resident, plain_heap, 3_000, id="glibc's heap"),
    ],
)
@few
@given(data=st.data())
def test_any_sequence_holds_as_much_as_a_plain_search_over_all_ranges(
    ours: Callable[[Passes], int], plain: Callable[[Sequence], int], largest: int, data: st.DataObject
) -> None:
    sequence = data.draw(sequences(largest))
    assert ours(sequence.passes()) == plain(sequence)
