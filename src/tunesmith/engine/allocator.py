"""Where a run's tensors on a CPU come from: an arena of our own (arena.cpp), or the C library, told to keep what a step
frees for the next step."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from tunesmith.data.cache import cache_directory

SOURCE = Path(__file__).with_name("arena.cpp")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_THRESHOLD = 32 * 2**20  # glibc refuses more


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Within the block, new tensors reuse what earlier ones have left, without faulting pages in and with few gaps.

    They come from the arena, where it can be compiled. Elsewhere glibc's thresholds are raised, for good: by default it
    gives large blocks back to the kernel on every free, and zeroing the fresh pages costs a tenth to a fifth of a step.
    Does nothing where the C library is another one.
    """
    own = arena()
    if own is None:
        if _has_glibc():
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        yield
        return
    _count_users(own, 1)
    try:
        yield
    finally:
        _count_users(own, -1)
        give_back_freed_memory()


_users, _users_lock = 0, threading.Lock()


def _count_users(own: ctypes.CDLL, more: int) -> None:
    """The arena is in use as long as anyone uses it, in whatever thread."""
    global _users
    with _users_lock:
        _users += more
        own.arena_use(int(_users > 0))


def give_back_freed_memory() -> None:
    """Hand what is kept for the next step back to the kernel, so that what is held can be measured."""
    own = arena()
    if own is not None:
        own.arena_trim()
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


@cache
def arena() -> ctypes.CDLL | None:
    """The compiled arena, not yet in use; None on other systems than Linux, without a C++ compiler, or with
    `TUNESMITH_ARENA=0` in the environment.

    It is compiled once for each version of PyTorch, whose headers it needs, in two or three seconds, and kept beside
    its source, or in the cache's folder where that may not be written to. None as well where that fails.
    """
    if sys.platform != "linux" or os.environ.get("TUNESMITH_ARENA") == "0":
        return None
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    name = f"arena-{torch.__version__}-{platform.machine()}-{source}.so"
    beside, kept = SOURCE.with_name(name), cache_directory() / name
    library = beside if beside.exists() or (os.access(SOURCE.parent, os.W_OK) and not kept.exists()) else kept
    try:
        if not library.exists():
            _compile(library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(library: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise OSError("no C++ compiler")
    torch_directory = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    flags = ["-O2", "-std=c++20", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    places = [f"-I{torch_directory / 'include'}", f"-L{torch_directory / 'lib'}", "-lc10"]
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:  # several processes may do this at once
        new = Path(directory, library.name)
        command = [*shlex.split(compiler), *flags, str(SOURCE), *places, "-o", str(new)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        new.rename(library)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
