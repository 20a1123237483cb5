"""The arena: live tensors are never overwritten, gaps are reused, and the planner predicts its address range."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.engine import build_arena
from tunesmith.engine.allocator import arena, keep_freed_memory, release_freed_memory

pytestmark = pytest.mark.skipif(arena() is None, reason="needs Linux and a C++ compiler")

MIB = 2**20


@pytest.fixture(autouse=True)
def _in_use() -> Iterator[None]:
    with keep_freed_memory():
        yield


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 300_000), st.integers(0, 9)), min_size=1, max_size=80))
def test_live_tensors_keep_their_values_while_others_are_allocated_and_freed(steps: list[tuple[int, int]]) -> None:
    held: list[tuple[torch.Tensor, int]] = []
    for number, (size, dropped) in enumerate(steps):
        piece = torch.full((size,), number % 251, dtype=torch.uint8)
        assert piece.data_ptr() % 64 == 0
        held.append((piece, number % 251))
        if dropped < len(held) and number % 3:
            held.pop(dropped)
    spans = sorted((piece.data_ptr(), piece.data_ptr() + piece.nbytes) for piece, _ in held)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(bool((piece == number).all()) for piece, number in held)


def test_a_gap_is_reused_by_a_piece_of_the_same_size() -> None:
    pieces = [torch.empty(3 * MIB, dtype=torch.uint8) for _ in range(4)]
    address = pieces[1].data_ptr()
    pieces[1] = torch.empty(0)
    assert torch.empty(3 * MIB, dtype=torch.uint8).data_ptr() == address


REACH = """
import json, sys
import torch
from tunesmith.engine.allocator import arena
from tunesmith.planner.allocators import spanned
from tunesmith.planner.trace import Allocation

steps = json.loads(sys.stdin.read())
arena().arena_use(1)
first = torch.empty(64, dtype=torch.uint8)  # at the start of the arena
start, held, events, largest = first.data_ptr() - 64, {}, [], 0
events.append((True, Allocation(64, "workspace")))
for number, (size, dropped) in enumerate(steps):
    held[number] = torch.empty(size, dtype=torch.uint8), Allocation(size, "workspace")
    largest = max(largest, held[number][0].data_ptr() + -(-size // 64) * 64 - start)
    events.append((True, held[number][1]))
    if dropped in held:
        events.append((False, held.pop(dropped)[1]))
print(json.dumps([largest, spanned([(events, False)])]))
"""


@pytest.mark.long
def test_the_planner_predicts_the_address_range_of_the_arena() -> None:
    random = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 4 * MIB, (400,), generator=random).tolist()
    steps = [(size, int(torch.randint(0, number + 1, (), generator=random))) for number, size in enumerate(sizes)]
    command = [sys.executable, "-c", REACH]
    done = subprocess.run(command, input=json.dumps(steps), capture_output=True, text=True, check=True)
    reached, predicted = json.loads(done.stdout)
    assert reached == predicted
    assert predicted < sum(sizes)


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def test_freed_memory_stays_resident_until_it_is_given_back() -> None:
    release_freed_memory()
    before = resident()
    pieces = [torch.ones(8 * MIB, dtype=torch.uint8) for _ in range(20)]
    held = resident()
    pieces.clear()
    kept = resident()
    release_freed_memory()
    assert held > before + 150 * MIB
    assert kept > held - 20 * MIB
    assert resident() < before + 20 * MIB


def test_the_end_of_the_context_gives_freed_memory_back() -> None:
    release_freed_memory()
    before = resident()
    with keep_freed_memory():
        pieces = [torch.ones(8 * MIB, dtype=torch.uint8) for _ in range(20)]
        pieces.clear()
        assert resident() > before + 130 * MIB
    assert resident() < before + 20 * MIB


def test_large_pieces_have_their_own_mapping_and_are_unmapped_when_freed() -> None:
    piece = torch.empty(2**30, dtype=torch.uint8)
    piece[:: 2**28] = 1
    assert int(piece[2**29]) == 1
    before = psutil.Process().memory_info().vms
    del piece
    assert psutil.Process().memory_info().vms < before - 2**29


@pytest.mark.long
def test_outside_the_context_tensors_use_pytorchs_own_allocator() -> None:
    code = """
import torch
from tunesmith.engine.allocator import arena, keep_freed_memory
def is_in_arena():
    return torch.ones(1000).data_ptr() // 2**40 < 80  # the C library's heap is at 85 TiB, its mappings at 127

with keep_freed_memory():
    with keep_freed_memory():
        kept = torch.ones(1000)
        inner = is_in_arena()
    between = is_in_arena()
print(inner, between, is_in_arena(), int(kept.sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "False", "1000"], done.stderr


@pytest.mark.parametrize("times", [4, 2**20])
def test_allocating_too_much_raises_pytorchs_own_error(times: int) -> None:
    if Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "1" and times < 2**20:
        pytest.skip("this system overcommits memory without limit")
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(times * psutil.virtual_memory().total, dtype=torch.uint8)


def test_threads_may_allocate_and_free_concurrently() -> None:
    def work(number: int) -> bool:
        sizes = (1 + (step * 7919 + number) % 50_000 for step in range(300))
        return all(bool((torch.full((size,), number, dtype=torch.uint8) == number).all()) for size in sizes)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_a_forked_child_process_can_use_the_arena() -> None:
    kept = torch.full((10_000,), 7, dtype=torch.uint8)  # short, since PyTorch's threads do not exist in the child
    child = os.fork()
    if child == 0:
        new = [torch.full((5_000,), number, dtype=torch.uint8) for number in range(20)]
        os._exit(0 if bool((kept == 7).all()) and all(int(piece[-1]) == n for n, piece in enumerate(new)) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler", "true"])
def test_there_is_no_arena_if_it_cannot_be_compiled(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "arena.cpp"
    source.write_text("// another source, so that it is not compiled yet", encoding="utf-8")
    monkeypatch.setattr(build_arena, "SOURCE", source)
    monkeypatch.setenv("CXX", compiler)
    assert arena.__wrapped__() is None
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".so"] == []


@pytest.mark.long
def test_without_the_arena_the_c_librarys_heap_is_used_and_predicted() -> None:
    code = """
import torch
from tunesmith.engine.allocator import arena, keep_freed_memory
from tunesmith.planner.allocators import resident
from tunesmith.planner.device import device_named
assert arena() is None and device_named("here").simulate_allocator is resident
with keep_freed_memory():
    print(int(torch.ones(10).sum()))
"""
    environment = {**os.environ, "TUNESMITH_ARENA": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "10", done.stderr
