"""Importing large libraries without looking for garbage among what they make."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Within the block Python's cyclic garbage collector rests: torch, transformers and PEFT make hundreds of thousands
    of objects that stay, and to look through them again and again takes an eighth of their import."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
