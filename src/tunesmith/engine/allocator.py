"""Telling the C library to keep the memory that a step frees for the next step."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_THRESHOLD = 32 * 2**20  # glibc refuses more


def keep_freed_memory() -> None:
    """Raise glibc's thresholds so that tensors of a few megabytes are reused, not unmapped and faulted in again.

    By default glibc gives large blocks back to the kernel on every free, and a training step allocates the same ones
    hundreds of times: zeroing the fresh pages costs a tenth to a fifth of a step. Does nothing where the
    C library is another one.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Hand what is kept for the next step back to the kernel, so that what is held can be measured."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
