"""The allocator of a run's CPU tensors: our own arena (arena.cpp), or the C library, set to keep freed memory for the
next step."""

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

    It is compiled once per version of PyTorch, because it needs PyTorch's headers. This takes two or three seconds. The
    library is kept next to its source, or in the cache directory if the source directory is not writable.
    """
    if sys.platform != "linux" or os.environ.get("TUNESMITH_ARENA") == "0":
        return None
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    name = f"arena-{torch.__version__}-{platform.machine()}-{source}.so"
    next_to_source, cached = SOURCE.with_name(name), cache_directory() / name
    use_source_directory = next_to_source.exists() or (os.access(SOURCE.parent, os.W_OK) and not cached.exists())
    library = next_to_source if use_source_directory else cached
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
    paths = [f"-I{torch_directory / 'include'}", f"-L{torch_directory / 'lib'}", "-lc10"]
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:  # several processes may compile at the same time
        new = Path(directory, library.name)
        command = [*shlex.split(compiler), *flags, str(SOURCE), *paths, "-o", str(new)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        new.rename(library)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
