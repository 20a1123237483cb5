"""Python's cyclic garbage collector, limited to new objects. Scanning those of torch and transformers, almost a
million, takes half a second each time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_is_frozen = False
"""Whether `freeze` was called. gc.get_freeze_count would tell too, but counts one object after the other."""


def freeze() -> None:
    """Leave what is in memory now out of garbage collections for as long as the process lives."""
    global _is_frozen
    _is_frozen = True
    gc.freeze()


def is_frozen() -> bool:
    """Whether `freeze` was called."""
    return _is_frozen


@contextmanager
def only_new_objects_collected() -> Iterator[None]:
    """Until the block ends, leave what is in memory now out of garbage collections.

    After `freeze` this does nothing: what that froze would be unfrozen too, since Python unfreezes all objects or none.
    """
    if _is_frozen:
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
