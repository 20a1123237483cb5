"""Importing PEFT without bitsandbytes, which it imports wherever it is installed: a second, and 50 MB that are kept.

PEFT needs it for bitsandbytes' own quantized layers alone; ours are others (`models.quantize`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Within the block PEFT finds no bitsandbytes, unless it has been imported; afterwards it looks again."""
    if "bitsandbytes" in sys.modules:
        yield
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # what import takes for "is not there"
    try:
        yield
    finally:
        del sys.modules["bitsandbytes"]
        asked = sys.modules.get("peft.import_utils")
        for name in ("is_bnb_available", "is_bnb_4bit_available"):
            getattr(getattr(asked, name, None), "cache_clear", lambda: None)()


def import_peft() -> Any:
    """PEFT, imported now if nobody has."""
    with without_bitsandbytes():
        return import_module("peft")
