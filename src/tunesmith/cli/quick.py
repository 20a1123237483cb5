"""Faster imports of large libraries: no garbage collection while they load, and none of what they made afterwards."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Turn Python's cyclic garbage collector off within the block. What is in memory after a process's first block is
    not collected any more.

    torch and transformers create hundreds of thousands of objects that stay. Scanning them again and again takes an
    eighth of the import time, a third of a second while a model is loaded, and most of a second at exit.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
        if was_on:
            gc.enable()
