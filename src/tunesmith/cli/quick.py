"""Faster imports of large libraries: no garbage collection while they load."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Turn Python's cyclic garbage collector off within the block. torch, transformers and PEFT create hundreds of
    thousands of objects that stay; scanning them again and again takes an eighth of the import time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
