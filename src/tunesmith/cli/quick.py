"""Faster imports of large libraries: no garbage collection while they load, none of what they made afterwards, and no
SciPy for what no command does."""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from tunesmith.garbage_collection import freeze, is_frozen

LOSSES = "transformers.loss."
"""Modules that come with every model of transformers. Some import SciPy's optimizers, for losses of object detection: a
tenth of all import time."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Turn Python's cyclic garbage collector off within the block. What is in memory after a process's first block is
    not collected any more. transformers' losses of object detection are imported as if SciPy were not installed.

    torch and transformers create hundreds of thousands of objects that stay. Scanning them again and again takes an
    eighth of the import time, a third of a second while a model is loaded, and most of a second at exit.
    """
    was_on = gc.isenabled()
    gc.disable()
    sys.meta_path.insert(0, _WithoutSciPy())
    try:
        yield
    finally:
        del sys.meta_path[[isinstance(finder, _WithoutSciPy) for finder in sys.meta_path].index(True)]
        if not is_frozen():
            freeze()
        if was_on:
            gc.enable()


class _WithoutSciPy(MetaPathFinder):
    """Finds transformers' losses."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname.startswith(LOSSES) else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Executes such a module while transformers says that SciPy is not available."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import transformers.utils as utils

        available = utils.is_scipy_available
        utils.is_scipy_available = lambda: False
        try:
            self._own.exec_module(module)
        finally:
            utils.is_scipy_available = available
