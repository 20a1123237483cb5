"""Which instructions and how many threads operations may use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tunesmith.ops import native


@contextmanager
def processor(amx: bool = True, lanes: int = 16) -> Iterator[None]:
    """Within the block, kernels run as on a processor without AMX, or whose registers hold that many fp32 numbers."""
    library = native.library()
    assert library is not None
    library.allow_amx(amx)
    library.allow_lanes(lanes)
    try:
        yield
    finally:
        library.allow_amx(True)
        library.allow_lanes(16)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block, operations run on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
