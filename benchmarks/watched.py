"""A command and its worker processes, watched while they run."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil


def run(command: list[str], every: float = 1.0, **environment: str) -> dict[str, Any]:
    """Run a command.

    Args:
        command: to run.
        every: seconds between two looks at its memory; each look costs a worker's time.
        environment: variables to set.

    Returns:
        `seconds`, `processor_seconds`, and in bytes the largest `memory` of its processes together, and of that what is
        `anonymous`: not the pages of files that the system can take back.

    Raises:
        RuntimeError: it fails.
    """
    began, before = time.perf_counter(), os.times()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    memory = anonymous = 0
    while process.poll() is None:
        total, own = _memory(process)
        memory, anonymous = max(memory, total), max(anonymous, own)
        time.sleep(every)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "processor_seconds": used, "memory": memory, "anonymous": anonymous}


def _memory(process: psutil.Process) -> tuple[int, int]:
    """Proportional memory of a process and its children, and what of it is anonymous: what they share counts once."""
    total = anonymous = 0
    try:
        for each in (process, *process.children(recursive=True)):
            lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {name.rstrip(":"): int(size) << 10 for name, size, *_ in map(str.split, lines)}
            total, anonymous = total + sizes["Pss"], anonymous + sizes["Pss_Anon"]
    except (psutil.NoSuchProcess, OSError):  # it has just ended
        pass
    return total, anonymous
