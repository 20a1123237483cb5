"""Whether other processes take this one's processor time, so that what it measures is slower than it could be.

Linux counts for each thread how long it was ready to run and waited for a core (`schedstat` in proc(5)). That holds in
a container too, where the load average is the host's. Other systems have the load average alone.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BUSY = 0.2
"""The share of its processor time that a process lacks from which on the machine counts as busy."""

LEAST = 0.1
"""Seconds of waiting below which it does not count: one slice of another process is a large share of a short time."""


@dataclass(frozen=True)
class ProcessorTime:
    """Processor time of this process up to a moment.

    Attributes:
        wall: the moment, in seconds.
        ran: seconds that its threads ran.
        waited: seconds that each thread was ready to run and waited, by its id; None if the system does not count them.
    """

    wall: float
    ran: float
    waited: dict[int, float] | None

    @classmethod
    def now(cls) -> "ProcessorTime":
        return cls(time.perf_counter(), time.process_time(), waited_by_thread())


def taken_by_others(before: ProcessorTime, after: ProcessorTime) -> float:
    """The share of the processor time that this process could have used between two moments, and other processes got.

    A process with more threads than cores, or at its container's limit, also waits for itself. So what it lacks is at
    most what its cores could have given it beyond the time that it ran.

    Returns:
        0 to 1; 0 if it is too little to count.
    """
    ran = after.ran - before.ran
    if before.waited is None or after.waited is None:
        return share_by_load(_load(), available_cores())
    waited = sum(max(0.0, seconds - before.waited.get(thread, 0.0)) for thread, seconds in after.waited.items())
    lacked = min(waited, available_cores() * (after.wall - before.wall) - ran)
    return lacked / (lacked + ran) if lacked >= LEAST else 0.0


def share_by_load(load: float, cores: float) -> float:
    """What other processes get of the cores, if this process has one thread ready to run for each.

    Args:
        load: threads that are ready to run, of all processes, on average.
        cores: how many there are.
    """
    return max(0.0, load - cores) / max(load, cores)


def busy_message(share: float) -> str:
    """The warning for a share as `taken_by_others` returns it."""
    return (
        f"Other processes take {share:.0%} of the processor time that this run needs, so it is slower than it could "
        "be, and its predicted time is uncertain."
    )


def waited_by_thread() -> dict[int, float] | None:
    """Seconds that each thread of this process was ready to run and waited for a core, since it started."""
    waited, ran = {}, 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError):  # the thread has ended
            nanoseconds, waiting, _ = map(int, file.read_text(encoding="ascii").split())
            ran += nanoseconds
            waited[int(file.parent.name)] = waiting / 1e9
    return waited if ran else None  # a kernel that does not count writes zeros


def available_cores() -> float:
    """Cores that this process may use: those of its affinity, at most its cgroup's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(cores), *_cgroup_limit(Path("/sys/fs/cgroup"))])


def _cgroup_limit(directory: Path) -> list[float]:
    """Cores, if the cgroup (cgroups(7), version 2 or 1) has a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # "max" in place of a number: no limit
            quota, period = map(int, " ".join((directory / name).read_text() for name in names).split())
            return [quota / period] if quota > 0 else []
    return []


def _load() -> float:
    """The load average of the last minute; 0 where there is none."""
    with suppress(OSError, AttributeError):
        return os.getloadavg()[0]
    return 0.0
