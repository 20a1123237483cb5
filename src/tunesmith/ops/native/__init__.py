"""The compiled CPU kernels, if the install could build them (hatch_build.py). Otherwise PyTorch's operations run.

Set the environment variable `TUNESMITH_NATIVE=0` to turn them off.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.compiled_sources import are_current

LIBRARY = Path(__file__).parent / "kernels.so"

_PAUSE_SOFT = 1
"""omp_pause_soft of omp.h."""

_POINTER: Any = ctypes.c_void_p
_LONG, _INT, _FLOAT = ctypes.c_int64, ctypes.c_int, ctypes.c_float


class AttentionArguments(ctypes.Structure):
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


class Packed(ctypes.Structure):
    """`Packed` of packed.h."""

    _fields_ = (
        ("codes", _POINTER),
        ("scales", _POINTER),
        ("points", _POINTER),
        ("stored", _LONG),
        ("inputs", _LONG),
        ("outputs", _LONG),
    )


class Paged(ctypes.Structure):
    """`Paged` of paged.h."""

    _fields_ = (
        ("kv_heads", _LONG),
        ("group", _LONG),
        ("dim", _LONG),
        ("value_dim", _LONG),
        ("scale", _FLOAT),
        ("softcap", _FLOAT),
        ("window", _LONG),
    )


class PagedCache(ctypes.Structure):
    """`PagedCache` of paged.h."""

    _fields_ = (("keys", _POINTER), ("values", _POINTER), ("key_scales", _POINTER), ("value_scales", _POINTER))


LINEARS = 7
"""Linear layers of a block: queries, keys, values, the attention's output, gate, up, down."""


class Block(ctypes.Structure):
    """`Block` of block.h."""

    _fields_ = (
        ("weights", Packed * LINEARS),
        ("biases", _POINTER * LINEARS),
        ("norms", _POINTER * 2),
        ("epsilons", _FLOAT * 2),
        ("attention", Paged),
        ("sinks", _POINTER),
        ("gelu", _LONG),
    )


class Step(ctypes.Structure):
    """`Step` of block.h."""

    _fields_ = (
        ("cos", _POINTER),
        ("sin", _POINTER),
        ("parts", _POINTER),
        ("count", _LONG),
        ("pages", _POINTER),
        ("cache", PagedCache),
        ("adapters", _POINTER * LINEARS),
        ("adapter_counts", _LONG * LINEARS),
    )


class Rows(ctypes.Structure):
    """`Rows` of attention.h, `RowsFp32` of attention_fp32.h, and `PagedRows` of paged.h."""

    _fields_ = (("at", _POINTER), ("token", _LONG), ("head", _LONG))

    @classmethod
    def of(cls, tensor: Tensor) -> "Rows":
        """Point to a (tokens, heads, dim) tensor; dim must be contiguous."""
        assert tensor.stride(2) == 1
        return cls(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


_ATTENTION: list[Any] = [_POINTER, _POINTER, _LONG, Rows, Rows, Rows, _POINTER]
_PAGED: list[Any] = [_POINTER, _POINTER, _LONG, _POINTER, Rows, Rows, Rows, *[_POINTER] * 3]
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
    "attention": [*_ATTENTION, _POINTER],
    "attention_backward": [*_ATTENTION, Rows, _POINTER, _POINTER, _POINTER],
    "paged_attention": _PAGED,
    "paged_attention_int8": _PAGED,
}
_UNSUFFIXED_ARGUMENTS: dict[str, list[Any]] = {
    "packed_linear": [_POINTER, _POINTER, _LONG, _POINTER, _POINTER, _LONG],
    "adapt_rows": [_POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER],
    "block": [_POINTER, _POINTER, _POINTER, _POINTER, _LONG],
    "inner_products_int8": [_POINTER, _POINTER, _POINTER, _LONG, _LONG, _POINTER],
}
_SUFFIX = {torch.bfloat16: "_bf16", torch.float32: "_fp32"}

Witness = Callable[[str, tuple[Any, ...]], None]
_witness: Witness | None = None


@contextmanager
def report_instead_of_calling(witness: Witness | None) -> Iterator[None]:
    """Within the block, call the witness with each kernel's name and arguments instead of running the kernel; for fake
    tensors. With None, kernels run."""
    global _witness
    before, _witness = _witness, witness
    try:
        yield
    finally:
        _witness = before


def runs() -> bool:
    """Whether kernels run, and are not only reported."""
    return _witness is None


def random_seed() -> int:
    """A seed for a kernel's own random numbers. It comes from PyTorch's generator, whose state checkpoints keep."""
    return 0 if _witness is not None else int(torch.randint(2**32, ()))


def takes(*tensors: Tensor) -> bool:
    """Whether kernels support these tensors: on the CPU, all in bf16 or all in fp32."""
    first = tensors[0]
    return (
        first.dtype in _SUFFIX
        and all(tensor.dtype == first.dtype and tensor.device.type == "cpu" for tensor in tensors)
        and library() is not None
    )


def gives(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the dequantization kernels can write tensors of this dtype on this device."""
    return dtype in _SUFFIX and device.type == "cpu" and library() is not None


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call a kernel that is there in bf16 and in fp32, on PyTorch's threads. A tensor passes its data pointer, None
    null."""
    call_named(name + _SUFFIX[dtype], *arguments)


def call_named(name: str, *arguments: Any) -> None:
    """Call a kernel by its name in the library."""
    if _witness is not None:
        _witness(name, arguments)
        return
    function = getattr(_loaded(), name)
    converted = [_to_c(kind, value) for kind, value in zip(function.argtypes, arguments, strict=False)]
    function(*converted, torch.get_num_threads())


def _to_c(kind: Any, value: Any) -> Any:
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    if not isinstance(value, Tensor):
        return value
    return Rows.of(value) if kind is Rows else value.data_ptr()


def _loaded() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None
    return loaded


@cache
def _openmp() -> ctypes.CDLL:
    """PyTorch's OpenMP, for all that is loaded later too, so that kernels use its threads: others would compete.

    Raises:
        OSError: PyTorch has another one.
    """
    own = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    own += sorted((Path(torch.__file__).parent.parent / "torch.libs").glob("libgomp*"))
    return ctypes.CDLL(str(own[0]) if own else "libgomp.so.1", ctypes.RTLD_GLOBAL)


def end_workers() -> None:
    """End the OpenMP threads that work for the calling thread, which gets new ones when it needs some.

    Each thread that computes has workers of its own. If there are more of all threads than cores, libgomp lets workers
    sleep after every parallel loop (`gomp_throttled_spin_count`), and waking them takes as long as a loop of one token.
    """
    with suppress(OSError, AttributeError):  # another OpenMP, whose threads are shared
        _openmp().omp_pause_resource_all(_PAUSE_SOFT)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, on PyTorch's own threads; None if they are not available."""
    if os.environ.get("TUNESMITH_NATIVE") == "0" or not LIBRARY.exists():
        return None
    try:
        _openmp()
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError:  # built on another system
        return None
    if not are_current(loaded, LIBRARY.parent):
        return None
    for name, arguments in _ARGUMENTS.items():
        for suffix in _SUFFIX.values():
            getattr(loaded, name + suffix).argtypes = [*arguments, _INT]
            getattr(loaded, name + suffix).restype = None
    for name, arguments in _UNSUFFIXED_ARGUMENTS.items():
        getattr(loaded, name).argtypes = [*arguments, _INT]
        getattr(loaded, name).restype = None
    return loaded
