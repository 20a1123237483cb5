"""A model without numbers: shapes, precisions and devices alone (PyTorch's fake tensors), from a config.

What asks a loaded model for numbers to find out what it is (`models.fused`) asks a small copy of the part instead.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from transformers import PreTrainedModel

from tunesmith.models.fake_mode import QuickFakeMode
from tunesmith.ops import native

SMALL = (8, 12, 20, 28)
"""Sizes that stand for a module's own in its small copy, one for each that differs."""


def is_materialized(tensor: Tensor) -> bool:
    """Whether the tensor has values that can be read."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def is_fake(model: PreTrainedModel) -> bool:
    """Whether the model is one without numbers."""
    return not is_materialized(next(model.parameters()))


@contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Within the block tensors are made without numbers, operations only work out shapes, and native kernels do
    nothing."""
    quiet = native.report_instead_of_calling(lambda *_: None)
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what fails is told by the error
    try:
        with QuickFakeMode(allow_non_fake_inputs=True) as mode, quiet, _parameters_can_be_converted():
            yield mode
    finally:
        logger.setLevel(level)


@contextmanager
def _parameters_can_be_converted() -> Iterator[None]:
    """Within the block `module.to(dtype)` works on parameters without numbers: PyTorch swaps these, which it refuses
    where weak references are, and its own fake mode keeps one of each."""
    swap = torch.utils.swap_tensors

    def take(one: Tensor, other: Tensor) -> None:
        one.data = other.data

    torch.utils.swap_tensors = take
    try:
        yield
    finally:
        torch.utils.swap_tensors = swap


@contextmanager
def real_numbers() -> Iterator[None]:
    """Within the block everything is as it is outside `fake_tensors`."""
    with unset_fake_temporarily(), native.report_instead_of_calling(None):
        yield


def small_copy(module: nn.Module) -> nn.Module:
    """The same module with numbers, its parameters' sizes exchanged for `SMALL` ones, alike for alike.

    Raises:
        ValueError: it has too many sizes, or parts whose sizes are not known here.
    """
    sizes: dict[int, int] = {}

    def small(size: int) -> int:
        if size not in sizes:
            if len(sizes) == len(SMALL):
                raise ValueError("too many sizes")
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
                raise ValueError(f"{name} is no linear layer")
    return made
