"""A fake model, built from a config: only shapes, dtypes and devices, no values (PyTorch's fake tensors).

Code that tries parts of a model on inputs (`modules.fused`) gets a small copy of the part instead.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from tunesmith.ops import native
from tunesmith.planner.fake_mode import new_fake_mode

SMALL = (8, 12, 20, 28)
"""Sizes that replace a module's own sizes in its small copy, one for each distinct size."""


@contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """In this context, new tensors have no values, operations only compute shapes, and native kernels do nothing."""
    quiet = native.report_instead_of_calling(lambda *_: None)
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a failure is reported by its exception
    try:
        with new_fake_mode() as mode, quiet, _parameters_can_be_converted():
            yield mode
    finally:
        logger.setLevel(level)


@contextmanager
def _parameters_can_be_converted() -> Iterator[None]:
    """In this context, `module.to(dtype)` works on fake parameters. PyTorch swaps such tensors, which fails for a
    tensor that has weak references, and its fake mode keeps one to each."""
    swap = torch.utils.swap_tensors

    def assign(one: Tensor, other: Tensor) -> None:
        one.data = other.data

    torch.utils.swap_tensors = assign
    try:
        yield
    finally:
        torch.utils.swap_tensors = swap


@contextmanager
def real_numbers() -> Iterator[None]:
    """In this context, tensors have values again, as outside `fake_tensors`."""
    with unset_fake_temporarily(), native.report_instead_of_calling(None):
        yield


@contextmanager
def small_copy(module: nn.Module) -> Iterator[nn.Module]:
    """In this context, tensors have values. Yields a copy of the module with values, in which each distinct parameter
    size is replaced by one of `SMALL`.

    Raises:
        ValueError: it has too many distinct sizes, or submodules with parameters other than linear layers.
    """
    sizes: dict[int, int] = {}

    def small(size: int) -> int:
        if size not in sizes:
            if len(sizes) == len(SMALL):
                raise ValueError("too many distinct sizes")
            sizes[size] = SMALL[len(sizes)]
        return sizes[size]

    with real_numbers():
        made = copy.copy(module)
        made._parameters = {
            name: None if own is None else nn.Parameter(torch.ones([small(size) for size in own.shape]))
            for name, own in module._parameters.items()
        }
        made._modules = {}
        for name, child in module._modules.items():
            if isinstance(child, nn.Linear):
                small_one = nn.Linear(small(child.in_features), small(child.out_features), child.bias is not None)
                made._modules[name] = small_one
            elif child is None or not any(True for _ in child.parameters()):
                made._modules[name] = child
            else:
                raise ValueError(f"{name} is not a linear layer")
        yield made
