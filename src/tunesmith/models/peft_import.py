"""Import PEFT without bitsandbytes. PEFT imports it if it is installed, which takes a second and 50 MB of memory.

PEFT needs it only for bitsandbytes' own quantized layers, which are not used here (see `models.layer_by_layer`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """In this context, PEFT finds no bitsandbytes, unless it was already imported. Afterwards PEFT checks again."""
    if "bitsandbytes" in sys.modules:
        yield
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # makes an import fail
    try:
        yield
    finally:
        del sys.modules["bitsandbytes"]
        checks = sys.modules.get("peft.import_utils")
        for name in ("is_bnb_available", "is_bnb_4bit_available"):
            getattr(getattr(checks, name, None), "cache_clear", lambda: None)()


def import_peft() -> Any:
    """The PEFT module, imported on the first call."""
    with without_bitsandbytes():
        return import_module("peft")
