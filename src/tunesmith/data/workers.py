"""Worker processes on all cores, that end with this process however it ends."""

import ctypes
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import current_process, get_context
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_AHEAD = 2
"""Tasks queued per worker, beyond the one whose result is awaited."""

DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of prctl(2)."""


def cores() -> int:
    """Cores for forked workers; 1 if this process cannot fork, or forking is not safe."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" and not current_process().daemon else 1


@contextmanager
def workers(count: int, start: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Forked processes; they end with this process.

    Args:
        count: how many.
        start: called in each worker, with the arguments, which are not pickled.
        arguments: of `start`.
    """
    pool = ProcessPoolExecutor(count, get_context("fork"), _start, (os.getpid(), start, arguments))
    try:
        with warnings.catch_warnings():
            # Since Python 3.12, a fork beside threads warns of locks that they may hold. The workers use no such lock.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            yield pool
    except BaseException:
        for worker in list(pool._processes.values()):  # nobody wants what they work on: after Ctrl-C least of all
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: ProcessPoolExecutor, count: int, work: Callable[[Task], Result], tasks: Iterable[Task]
) -> Iterator[Result]:
    """The results of the tasks, in their order; only a few tasks are taken ahead.

    Args:
        pool: from `workers`.
        count: of its workers.
        work: a function of a module, which a worker calls.
        tasks: what it is called with.
    """
    pending: deque[Any] = deque()
    for task in tasks:
        pending.append(pool.submit(work, task))
        if len(pending) > count * TASKS_AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _start(parent: int, start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
    start(*arguments)
