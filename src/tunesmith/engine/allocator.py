"""The allocator of a run's CPU tensors: our own arena (arena.cpp), or the C library, set to keep freed memory for the
next step."""

import ctypes
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from tunesmith.cache_directory import cache_directory
from tunesmith.engine import build_arena

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_THRESHOLD = 32 * 2**20  # glibc refuses more


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within the context, new tensors reuse the memory that earlier ones freed, without page faults and with few gaps.

    They come from the arena if it can be compiled. Otherwise glibc's thresholds are raised permanently: by default,
    glibc returns large blocks to the kernel on every free, and zeroing fresh pages costs a tenth to a fifth of a step.
    With a C library other than glibc, this does nothing.
    """
    library = arena()
    if library is None:
        if _has_glibc():
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        yield
        return
    _count_users(library, 1)
    try:
        yield
    finally:
        _count_users(library, -1)
        release_freed_memory()


_users, _users_lock = 0, threading.Lock()


def _count_users(library: ctypes.CDLL, change: int) -> None:
    """The arena stays active while any thread uses it."""
    global _users
    with _users_lock:
        _users += change
        library.arena_use(int(_users > 0))


def release_freed_memory() -> None:
    """Return memory that is kept for the next step to the kernel, so that the memory in use can be measured."""
    library = arena()
    if library is not None:
        library.arena_trim()
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


@cache
def arena() -> ctypes.CDLL | None:
    """The compiled arena, not yet active. None on systems other than Linux, without a C++ compiler, if compiling fails,
    or with `TUNESMITH_ARENA=0` in the environment.

    The installation compiles it next to its source. For another version of PyTorch it is compiled here, once: next to
    the source, or in the cache directory if that is not writable.
    """
    if sys.platform != "linux" or os.environ.get("TUNESMITH_ARENA") == "0":
        return None
    name = build_arena.file_name()
    next_to_source, cached = build_arena.SOURCE.with_name(name), cache_directory() / name
    use_source_directory = next_to_source.exists() or (
        os.access(build_arena.SOURCE.parent, os.W_OK) and not cached.exists()
    )
    library = next_to_source if use_source_directory else cached
    try:
        if not library.exists():
            build_arena.compile_arena(library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
