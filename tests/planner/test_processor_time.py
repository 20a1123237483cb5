"""What other processes take of this one's processor time, from given numbers and from a real busy process."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunesmith.planner import processor_time
from tunesmith.planner.processor_time import (
    BUSY,
    ProcessorTime,
    available_cores,
    busy_message,
    share_by_load,
    taken_by_others,
)
from tunesmith.planner.processor_time import _cgroup_limit as cgroup_limit

COUNTS_WAITING = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="the system does not count how long threads wait"
)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_time, "available_cores", lambda: 2.0)


def after(wall: float, ran: float, **waited: float) -> ProcessorTime:
    """The times after that many seconds; the threads are named `t1`, `t2` …"""
    return ProcessorTime(100 + wall, 40 + ran, {int(thread[1:]): seconds for thread, seconds in waited.items()})


BEFORE = after(0, 0, t1=5, t2=7)


@pytest.mark.parametrize(
    ("end", "share"),
    [
        pytest.param(after(10, 20, t1=5, t2=7), 0, id="both cores are ours"),
        pytest.param(after(10, 10, t1=10, t2=12), 1 / 2, id="half of each core"),
        pytest.param(after(10, 5, t1=5, t2=12), 1 / 2, id="one thread gets half a core"),
        pytest.param(after(10, 15, t1=5, t2=7, t3=5), 1 / 4, id="a new thread waits"),
        pytest.param(after(10, 15, t2=12), 1 / 4, id="a thread that has ended is not counted"),
        pytest.param(after(10, 10, t1=5, t2=7), 0, id="what runs in one thread lacks nothing"),
        pytest.param(after(10, 20, t1=15, t2=17, t3=10), 0, id="own threads compete for the cores"),
        pytest.param(after(10, 16, t1=45, t2=47), 4 / 20, id="own threads and others compete"),
        pytest.param(after(0.1, 0.01, t1=5.09, t2=7), 0, id="too short a time to say"),
    ],
)
def test_others_take_what_threads_wait_for_and_the_process_does_not_get(end: ProcessorTime, share: float) -> None:
    assert taken_by_others(BEFORE, end) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize(("load", "share"), [(0.0, 0.0), (2.0, 0.0), (3.9, 1.9 / 3.9), (4.0, 0.5), (20.0, 0.9)])
def test_without_such_counts_the_load_average_beyond_the_cores_is_that_of_others(
    load: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert share_by_load(load, 2) == pytest.approx(share)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    without = ProcessorTime(0, 0, None)
    assert taken_by_others(without, ProcessorTime(10, 10, None)) == pytest.approx(share)
    assert taken_by_others(without, BEFORE) == pytest.approx(share)


def test_a_system_without_a_load_average_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert taken_by_others(ProcessorTime(0, 0, None), ProcessorTime(10, 1, None)) == 0


def test_the_message_has_the_share_and_what_it_means() -> None:
    assert busy_message(0.487) == (
        "Other processes take 49% of the processor time that this run needs, so it is slower than it could be, and its "
        "predicted time is uncertain."
    )
    assert 0 < BUSY < 0.5


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, []),
        ({"cpu.max": "max 100000\n"}, []),
        ({"cpu.max": "150000 100000\n"}, [1.5]),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, [0.5]),
    ],
)
def test_a_containers_limit_in_cores_is_that_of_its_cgroup(
    files: dict[str, str], limit: list[float], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert cgroup_limit(tmp_path) == limit


def test_the_cores_are_those_of_the_affinity_and_the_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_time, "_cgroup_limit", lambda directory: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 9}, raising=False)
    assert available_cores() == 3
    monkeypatch.setattr(processor_time, "_cgroup_limit", lambda directory: [1.5])
    assert available_cores() == 1.5
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert available_cores() == 1


@pytest.fixture
def one_core_with_a_busy_process() -> Iterator[None]:
    """This thread and a process that never sleeps share one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # on the same core
    yield
    process.kill()
    process.wait()
    os.sched_setaffinity(0, cores)


@COUNTS_WAITING
@pytest.mark.usefixtures("one_core_with_a_busy_process")
def test_a_busy_process_on_the_same_core_is_noticed(
    counts_waiting: Callable[[], dict[int, float] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_time, "waited_by_thread", counts_waiting)
    before = ProcessorTime.now()
    deadline = time.monotonic() + 60
    while taken_by_others(before, ProcessorTime.now()) == 0 and time.monotonic() < deadline:
        sum(range(10_000))
    assert taken_by_others(before, ProcessorTime.now()) > 0


@COUNTS_WAITING
def test_waiting_is_counted_for_each_thread_and_never_decreases(
    counts_waiting: Callable[[], dict[int, float] | None],
) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        first, second = counts_waiting(), counts_waiting()
        assert first is not None
        assert second is not None
        assert {threading.get_native_id(), thread.native_id} <= first.keys()
        assert all(second[name] >= seconds >= 0 for name, seconds in first.items() if name in second)
    finally:
        done.set()
        thread.join()
    now = counts_waiting()
    assert now is not None
    assert thread.native_id not in now
