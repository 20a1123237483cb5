"""The compiled kernels, where the install could build them (hatch_build.py). Elsewhere PyTorch's own operations do.

`TUNESMITH_NATIVE=0` in the environment turns them off.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LIBRARY = Path(__file__).parent / "kernels.so"

_POINTER: Any = ctypes.c_void_p
_LONG, _INT, _FLOAT = ctypes.c_int64, ctypes.c_int, ctypes.c_float


class Shape(ctypes.Structure):
    """`Shape` of attention.h."""

    _fields_ = (
        ("kv_heads", _LONG),
        ("group", _LONG),
        ("dim", _LONG),
        ("scale", _FLOAT),
        ("window", _LONG),
        ("causal", _INT),
        ("dropped", _FLOAT),
        ("seed", _LONG),
    )


class Rows(ctypes.Structure):
    """`Rows` of attention.h."""

    _fields_ = (("at", _POINTER), ("token", _LONG), ("head", _LONG))

    @classmethod
    def of(cls, tensor: Tensor) -> "Rows":
        """(tokens, heads, dim), dim without gaps."""
        assert tensor.stride(2) == 1
        return cls(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


_ARGUMENTS: dict[str, list[Any]] = {
    "cross_entropy": [_POINTER, _POINTER, _POINTER, _LONG, _LONG, _FLOAT, _INT],
    "rms_norm": [_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _FLOAT],
    "rms_norm_backward": [_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG],
    "gated": [_POINTER, _POINTER, _POINTER, _LONG, _INT],
    "gated_backward": [_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _LONG, _INT],
    "dropout": [_POINTER, _POINTER, _LONG, _LONG, _FLOAT],
    "four_bits": [_POINTER, _POINTER, _POINTER, _POINTER, _LONG],
    "eight_bits": [_POINTER, _POINTER, _POINTER, _LONG, _LONG],
    "rotary": [_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG, _LONG, _INT],
}
_ATTENTION: list[Any] = [_POINTER, _POINTER, _LONG, Rows, Rows, Rows, _POINTER]
_ATTENTION_ARGUMENTS: dict[str, list[Any]] = {
    "attention": [*_ATTENTION, _POINTER],
    "attention_backward": [*_ATTENTION, Rows, _POINTER, _POINTER, _POINTER],
}
_SUFFIX = {torch.bfloat16: "_bf16", torch.float32: "_fp32"}

Witness = Callable[[str, tuple[Any, ...]], None]
_witness: Witness | None = None


@contextmanager
def report_instead_of_calling(witness: Witness | None) -> Iterator[None]:
    """Within the block no kernel runs; the witness is told its name and arguments, for tensors without numbers. With
    None they run."""
    global _witness
    before, _witness = _witness, witness
    try:
        yield
    finally:
        _witness = before


def runs() -> bool:
    """Whether kernels are called, and not told alone."""
    return _witness is None


def random_seed() -> int:
    """For a kernel's own random numbers, of PyTorch's stream, which a run keeps."""
    return 0 if _witness is not None else int(torch.randint(2**32, ()))


def takes(*tensors: Tensor) -> bool:
    """Whether the elementwise kernels can read these: on the CPU, all in bf16 or all in fp32."""
    first = tensors[0]
    return (
        first.dtype in _SUFFIX
        and all(each.dtype == first.dtype and each.device.type == "cpu" for each in tensors)
        and library() is not None
    )


def gives(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels that make tensors can make them of this dtype, there."""
    return dtype in _SUFFIX and device.type == "cpu" and library() is not None


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """One of elementwise.h, on PyTorch's threads; tensors stand for their first element, None for a null pointer."""
    call_named(name + _SUFFIX[dtype], *arguments)


def call_attention(name: str, *arguments: Any) -> None:
    """One of attention.h, in bf16."""
    call_named(name, *arguments)


def call_named(name: str, *arguments: Any) -> None:
    """A kernel by its name in the library."""
    if _witness is not None:
        _witness(name, arguments)
        return
    function = getattr(_loaded(), name)
    given = [_as(kind, value) for kind, value in zip(function.argtypes, arguments, strict=False)]
    function(*given, torch.get_num_threads())


def _as(kind: Any, value: Any) -> Any:
    if isinstance(value, Shape):
        return ctypes.byref(value)
    if not isinstance(value, Tensor):
        return value
    return Rows.of(value) if kind is Rows else value.data_ptr()


def _loaded() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, on the same threads as PyTorch's; None where there are none."""
    if os.environ.get("TUNESMITH_NATIVE") == "0" or not LIBRARY.exists():
        return None
    own = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    own += sorted((Path(torch.__file__).parent.parent / "torch.libs").glob("libgomp*"))
    try:
        ctypes.CDLL(str(own[0]) if own else "libgomp.so.1", ctypes.RTLD_GLOBAL)  # a second pool would fight the first
        found = ctypes.CDLL(str(LIBRARY))
    except OSError:  # built on another system
        return None
    for name, arguments in _ARGUMENTS.items():
        for suffix in _SUFFIX.values():
            getattr(found, name + suffix).argtypes = [*arguments, _INT]
            getattr(found, name + suffix).restype = None
    for name, arguments in _ATTENTION_ARGUMENTS.items():
        getattr(found, name).argtypes = [*arguments, _INT]
        getattr(found, name).restype = None
    return found
