"""Where allocators place pieces of memory: by hand for each rule, and beside a plain search over every stretch."""

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
from tunesmith.planner.trace import Held

KIB, MIB, GIB = 2**10, 2**20, 2**30
few = settings(max_examples=60, deadline=None)


def up(size: int, step: int) -> int:
    return (size + step - 1) // step * step


def pack_any_order(allocator: Allocator, *steps: tuple[str, Held]) -> list[int]:
    """What the allocator has had at most, after each step: "+" takes a piece, "-" gives it back."""
    found = []
    for what, piece in steps:
        (allocator.take if what == "+" else allocator.give)(piece)
        found.append(allocator.most)
    return found


def piece(size: int, part: str = "workspace") -> Held:
    return Held(size, part)


# --- gaps ----------------------------------------------------------------------------------------------------------


def test_the_smallest_gap_that_is_large_enough_is_taken_and_the_first_of_equals() -> None:
    gaps = _Gaps()
    for start, end in ((0, 100), (200, 240), (300, 340), (500, 530)):
        assert gaps.put(start, end) == (start, end)
    assert gaps.best(31) == (200, 240)
    assert gaps.best(31) == (300, 340)
    assert gaps.best(31) == (0, 100)
    assert gaps.best(31) is None
    assert gaps.best(30) == (500, 530)


def test_a_gap_grows_together_with_both_of_its_neighbors() -> None:
    gaps = _Gaps()
    gaps.put(0, 10), gaps.put(20, 30), gaps.put(50, 60)
    assert gaps.put(10, 20) == (0, 30)
    assert gaps.put(40, 50) == (40, 60)
    assert gaps.best(21) == (0, 30)
    assert gaps.best(1) == (40, 60)
    assert gaps.best(1) is None


def test_a_gap_that_reaches_the_top_lowers_it_and_is_none_any_more() -> None:
    gaps = _Gaps()
    assert gaps.put_below(100, 20, 40) == 100
    assert gaps.put_below(100, 60, 80) == 100
    assert gaps.put_below(100, 80, 100) == 60
    assert gaps.best(1) == (20, 40)
    assert gaps.best(1) is None


# --- the arena -----------------------------------------------------------------------------------------------------


def test_the_arena_rounds_to_64_bytes_and_puts_a_header_of_as_many_before() -> None:
    for size, taken in ((1, 128), (64, 128), (65, 192), (1000, 1088)):
        assert spanned([([(True, piece(size))], False)]) == taken


def test_the_arena_splits_a_gap_that_leaves_more_than_a_header_and_no_other() -> None:
    first, stop = piece(256), piece(64)  # 320, 128
    arena = Arena()
    assert pack_any_order(arena, ("+", first), ("+", stop), ("-", first)) == [320, 448, 448]
    # 128 of 320 leave 192, of which 128 leave 64: no more than a header, so it goes along
    assert pack_any_order(arena, ("+", piece(64)), ("+", piece(64)), ("+", piece(1))) == [448, 448, 576]
    assert pack_any_order(arena, ("-", stop), ("+", piece(128))) == [576, 768]  # 128 behind it are free, and not 192


def test_pages_of_the_arena_stay_when_the_last_pieces_go() -> None:
    one, other = piece(936), piece(1960)  # 1024, 2048 with their headers
    arena = Arena()
    assert pack_any_order(arena, ("+", one), ("+", other), ("-", other), ("-", one)) == [1024, 3072, 3072, 3072]
    weights = piece(5000, "weights")
    assert pack_any_order(arena, ("+", weights)) == [3072 + 5000]  # mapped from its file: beside the arena, not rounded
    later = [("+", piece(3100)), ("-", weights), ("+", piece(3000, "trained weights"))]
    assert (
        pack_any_order(arena, *later) == [3200 + 5000] * 3
    )  # the top had come back to 0: 3,100 take 3,136 and a header


def test_the_arena_maps_a_gibibyte_by_itself_and_unmaps_it() -> None:
    large, almost = piece(GIB - 63), piece(GIB - 64)
    assert pack_any_order(Arena(), ("+", large), ("-", large), ("+", piece(64))) == [GIB - 63] * 3
    assert pack_any_order(Arena(), ("+", almost), ("-", almost), ("+", piece(64))) == [GIB] * 3


def test_a_piece_of_no_bytes_takes_no_place() -> None:
    nothing = piece(0)
    assert pack_any_order(Arena(), ("+", nothing), ("-", nothing), ("+", piece(64))) == [0, 0, 128]


# --- PyTorch's allocator for CUDA ------------------------------------------------------------------------------------


def test_a_segments_size_follows_from_the_pieces_as_pytorchs_source_has_it() -> None:
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
    assert pack_any_order(CachingAllocator(), *steps) == [2 * MIB, 2 * MIB, 2 * MIB, 4 * MIB]
    # a rest below 512 bytes cannot be, since sizes are rounded to it
    rounded = [("+", piece(MIB // 16 - 511)) for _ in range(32)] + [("+", piece(1))]
    assert pack_any_order(CachingAllocator(), *rounded)[-2:] == [2 * MIB, 4 * MIB]


def test_a_large_rest_is_used_again_only_where_it_is_over_a_mebibyte() -> None:
    kept = CachingAllocator()
    assert pack_any_order(kept, ("+", piece(9 * MIB)), ("+", piece(9 * MIB))) == [20 * MIB, 20 * MIB]
    assert pack_any_order(kept, ("+", piece(2 * MIB))) == [20 * MIB]  # 2 MiB are left over of 20, more than one
    split = CachingAllocator()
    assert pack_any_order(split, ("+", piece(19 * MIB)), ("+", piece(MIB + 512))) == [20 * MIB, 40 * MIB]
    lost = CachingAllocator()
    seven = [piece(7 * MIB), piece(7 * MIB)]
    assert pack_any_order(lost, ("+", seven[0]), ("+", seven[1]), ("+", piece(5 * MIB))) == [20 * MIB] * 3
    # 6 MiB were left, 5 are taken: the rest of exactly 1 MiB goes with them
    assert pack_any_order(lost, ("+", piece(MIB + 512))) == [40 * MIB]


def test_small_and_large_pieces_never_share_a_segment() -> None:
    small, large = piece(MIB), piece(2 * MIB)
    allocator = CachingAllocator()
    steps = [("+", large), ("-", large), ("+", small), ("-", small)]
    assert pack_any_order(allocator, *steps) == [20 * MIB, 20 * MIB, 22 * MIB, 22 * MIB]
    assert pack_any_order(allocator, ("+", piece(2 * MIB)), ("+", piece(KIB))) == [22 * MIB, 22 * MIB]


def test_segments_are_kept_and_never_become_one() -> None:
    one, other = piece(12 * MIB), piece(12 * MIB)
    allocator = CachingAllocator()
    steps = [("+", one), ("+", other), ("-", one), ("-", other), ("+", piece(24 * MIB)), ("+", piece(11 * MIB + 1))]
    assert pack_any_order(allocator, *steps) == [12 * MIB, 24 * MIB, 24 * MIB, 24 * MIB, 48 * MIB, 48 * MIB]


# --- glibc's heap --------------------------------------------------------------------------------------------------


def test_the_heap_places_pieces_at_multiples_of_64_with_a_header_of_16() -> None:
    heap = Heap()
    # at 48, so that what follows the header lies at 64; then, since 16 bytes are too few for a gap, at 1,136
    assert pack_any_order(heap, ("+", piece(1000))) == [1056]
    assert pack_any_order(heap, ("+", piece(100))) == [1136 + 112]
    assert pack_any_order(heap, ("+", piece(1))) == [1328 + 32]  # no piece is smaller than 32


def test_a_rest_of_200_bytes_becomes_a_gap_and_less_goes_with_the_piece() -> None:
    def grown(size: int) -> int:
        """By how much the top rises for 25 bytes once a gap of 1,136 bytes has been taken by a piece of that size."""
        heap = Heap()
        first = piece(1000)
        pack_any_order(
            heap, ("+", first), ("+", piece(1000)), ("-", first)
        )  # 48 before the first and 80 behind it go along
        before = pack_any_order(heap, ("+", piece(size)))[-1]
        return pack_any_order(heap, ("+", piece(25)))[-1] - before

    assert grown(872) == 0  # 1,136 - 48 - 880 leave 208
    assert grown(888) == 128  # 192 are left and lost: 80 up to the next multiple of 64, and 48


def test_large_pieces_and_weights_lie_beside_the_heap_and_go_when_they_are_given() -> None:
    large = piece(32 * MIB)
    assert pack_any_order(Heap(), ("+", large), ("-", large), ("+", piece(1000))) == [32 * MIB] * 3
    assert pack_any_order(Heap(), ("+", piece(32 * MIB - 1))) == [48 + up(32 * MIB + 7, 16)]
    for part in MAPPED:
        weights = piece(777, part)
        assert pack_any_order(Heap(), ("+", weights), ("+", piece(1000)), ("-", weights)) == [
            777,
            777 + 1056,
            777 + 1056,
        ]


def test_slivers_are_held_until_their_activation_goes_or_the_pass_ends() -> None:
    """Two pieces of 10,016 bytes, header included: 48 + 10,016 + 32 + 10,016 = 20,112."""

    def room(stays: str, *, graph: bool, pause: bool, give: bool) -> int:
        """The largest gap at last, once the first piece has gone."""
        heap = Heap()
        heap.makes_graph = graph
        passing, kept, last = piece(10_000), piece(10_000, stays), piece(10_000)
        assert pack_any_order(heap, ("+", passing), ("+", kept), ("+", last), ("-", passing))[1] == 20_112
        if give:
            heap.give(kept)
        if pause:
            heap.pause()
        return max(size for size, _ in heap._gaps._by_size)

    assert room("activations", graph=True, pause=False, give=False) == 10_016  # alone: slivers on both sides are held
    assert room("activations", graph=True, pause=True, give=False) == 10_048  # the one behind it is free
    assert room("workspace", graph=True, pause=True, give=False) == 10_096  # both are
    assert room("activations", graph=False, pause=False, give=False) == 10_096  # nobody took them
    assert room("activations", graph=True, pause=False, give=True) == 10_064  # the one before it has come back
    assert room("activations", graph=True, pause=True, give=True) == 20_112 + 32  # all up to the last piece


def test_what_a_pass_has_left_is_free_for_the_next_pass() -> None:
    first, second = piece(10_000), piece(10_000)
    graph = [(True, first), (True, second), (False, first), (False, second)]
    assert resident([(graph, True)]) == 20_112
    assert resident([(graph, True), ([(True, piece(20_100))], False)]) == 48 + up(20_108, 16)


# --- beside a plain search -------------------------------------------------------------------------------------------


@dataclass
class Stretch:
    start: int
    end: int
    free: bool


class Plain:
    """Every stretch of an address space in order; free neighbors are joined after each step."""

    def __init__(self) -> None:
        self.all: list[Stretch] = []

    def best(self, size: int) -> Stretch | None:
        fits = [each for each in self.all if each.free and each.end - each.start >= size]
        return min(fits, key=lambda each: (each.end - each.start, each.start), default=None)

    def free(self, start: int, end: int) -> None:
        self.all = [each for each in self.all if each.free or not (start <= each.start and each.end <= end)]
        self.all.append(Stretch(start, end, True))
        self.join()

    def hold(self, start: int, end: int) -> None:
        self.all.append(Stretch(start, end, False))
        self.all.sort(key=lambda each: each.start)

    def join(self) -> None:
        self.all.sort(key=lambda each: each.start)
        joined: list[Stretch] = []
        for each in self.all:
            if joined and joined[-1].free and each.free and joined[-1].end == each.start:
                joined[-1].end = each.end
            else:
                joined.append(each)
        self.all = joined

    def cut(self, top: int) -> int:
        """The top when what is free beneath it has become part of it."""
        if self.all and self.all[-1].free and self.all[-1].end == top:
            return self.all.pop().start
        return top


@dataclass
class Step:
    """A piece comes or goes, in a pass that makes a graph or not; `ends`: it is the pass's last."""

    comes: bool
    number: int
    graph: bool
    ends: bool


@dataclass
class Sequel:
    """Pieces by number with their sizes, whether they are activations, and the steps in which they come and go."""

    sizes: list[int]
    kept: list[bool]
    steps: list[Step]

    def passes(self) -> Passes:
        pieces = [Held(size, "activations" if kept else "workspace") for size, kept in zip(self.sizes, self.kept)]  # noqa: B905
        found: list[tuple[list[tuple[bool, Held]], bool]] = [([], self.steps[0].graph)]
        for step in self.steps:
            found[-1][0].append((step.comes, pieces[step.number]))
            found[-1] = (found[-1][0], step.graph)
            if step.ends:
                found.append(([], False))
        return found


def plain_arena(sequel: Sequel) -> int:
    space, top, farthest = Plain(), 0, 0
    places: dict[int, tuple[int, int]] = {}
    for step in sequel.steps:
        if step.comes:
            need = up(sequel.sizes[step.number], 64) + 64
            gap = space.best(need)
            if gap is None:
                start, end, top = top, top + need, top + need
            else:
                space.all.remove(gap)
                start, end = gap.start, gap.end
                if end - start > need + 64:
                    space.all.append(Stretch(start + need, end, True))
                    end = start + need
            space.hold(start, end)
            places[step.number] = (start, end)
        else:
            space.free(*places.pop(step.number))
            top = space.cut(top)
        farthest = max(farthest, top)
    return farthest


def plain_caching(sequel: Sequel) -> int:
    spaces = {True: Plain(), False: Plain()}
    places: dict[int, tuple[int, int]] = {}
    at = held = 0
    for step in sequel.steps:
        size = max(512, up(sequel.sizes[step.number], 512))
        small = size <= MIB
        space = spaces[small]
        if not step.comes:
            space.free(*places.pop(step.number))
            continue
        gap = space.best(size)
        if gap is None:
            whole = 2 * MIB if small else 20 * MIB if size < 10 * MIB else up(size, 2 * MIB)
            start, end = at, at + whole
            at, held = end + 1, held + whole
        else:
            space.all.remove(gap)
            start, end = gap.start, gap.end
        if end - start - size >= (512 if small else MIB + 1):
            space.all.append(Stretch(start + size, end, True))
            end = start + size
        space.hold(start, end)
        places[step.number] = (start, end)
    return held


def plain_heap(sequel: Sequel) -> int:
    """What stands out before a piece is a gap at once, or held by the next activation where a graph is made."""
    space, top, most = Plain(), 0, 0
    places: dict[int, tuple[int, int]] = {}
    waiting: list[tuple[int, int]] = []
    beside: dict[int, list[tuple[int, int]]] = {}
    for step in sequel.steps:
        number = step.number
        if step.comes:
            if sequel.kept[number]:
                beside[number], waiting = waiting, []
            size = max(32, up(sequel.sizes[number] + 8, 16))
            gap = space.best(size + 64 + 32)
            if gap is not None:
                space.all.remove(gap)
            start = top if gap is None else gap.start
            place = up(start + 16, 64) - 16
            if 0 < place - start < 32:
                place += 64
            end = place + size
            if gap is None:
                top = end
            elif gap.end - end >= 200:
                space.all.append(Stretch(end, gap.end, True))
            else:
                end = gap.end
            if place > start:
                space.all.append(Stretch(start, place, not step.graph))
                if step.graph:
                    waiting.append((start, place))
            space.hold(place, end)
            space.join()
            places[number] = (place, end)
            most = max(most, top)
        else:
            for stretch in (places.pop(number), *beside.pop(number, [])):
                space.free(*stretch)
                top = space.cut(top)
        if step.ends:
            for stretch in waiting:
                space.free(*stretch)
                top = space.cut(top)
            waiting = []
    return most


@st.composite
def sequels(draw: st.DrawFn, largest: int) -> Sequel:
    """Pieces come; after each, one that is there may go."""
    sizes = draw(st.lists(st.integers(1, largest), min_size=4, max_size=40))
    kept = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    steps: list[Step] = []
    there: list[int] = []
    graph = draw(st.booleans())
    for number in range(len(sizes)):
        steps.append(Step(True, number, graph, False))
        there.append(number)
        drop = draw(st.integers(-len(there), len(there) - 1))
        if drop >= 0:
            steps.append(Step(False, there.pop(drop), graph, False))
        if draw(st.integers(0, 7)) == 0:
            steps[-1].ends = True
            graph = not graph
    return Sequel(sizes, kept, steps)


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
def test_any_sequence_takes_what_a_plain_search_over_all_stretches_takes(
    ours: Callable[[Passes], int], plain: Callable[[Sequel], int], largest: int, data: st.DataObject
) -> None:
    sequel = data.draw(sequels(largest))
    assert ours(sequel.passes()) == plain(sequel)
