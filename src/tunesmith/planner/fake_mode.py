"""A faster mode for PyTorch's fake tensors.

A plan runs thousands of operations on fake tensors. PyTorch's own mode takes about 200 µs for each, mostly to build its
cache key and to handle symbolic sizes. Here all sizes are known, and there is one device.

Only here, private parts of PyTorch decide how an operation is handled. `new_fake_mode` tries them once on a few
operations; where they are missing or give other results than PyTorch's own mode, that mode is used.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

try:
    from torch._subclasses import fake_impls
except ImportError:
    fake_impls = None  # type: ignore[assignment]

CPU = torch.device("cpu")


class TensorSpec(NamedTuple):
    """The properties of a tensor that determine an operation's result: sizes, strides and dtype."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorSpec":
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    @property
    def numbers(self) -> int:
        return prod(self.sizes)

    @property
    def bytes(self) -> int:
        return self.numbers * self.dtype.itemsize


class OwnFakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """PyTorch's own mode."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "OwnFakeMode":
        """The mode itself. PEFT deep-copies a new head and, with its tensors, their mode. A real copy would free
        PyTorch's weak references twice, which corrupts the heap."""
        return self


class QuickFakeMode(OwnFakeMode):  # type: ignore[no-untyped-call]
    """Computes an operation's result for given argument shapes once and caches it. PyTorch's own mode handles unusual
    operations."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function is torch.ops.prim.device.default:
            return arguments[0].fake_device
        kind = _kind(function)
        values = (*arguments, *keywords.values())
        if kind != "unusual" and "device" not in keywords and _all_fake(values):
            try:
                if kind == "maker":
                    value_types = tuple(map(type, values))
                    result = _results(function, tuple(keywords), _key(values), value_types, torch.get_default_dtype())
                    return self._fake_result(result, values)
                with fake_tensor.in_kernel_invocation_manager(self):
                    return self._fake_result(function(*arguments, **keywords))
            except NotImplementedError:  # its meta kernel calls one that needs values
                pass
        return super().__torch_dispatch__(function, types, arguments, keywords)

    def _fake_result(self, result: Any, arguments: Sequence[Any] = ()) -> Any:
        """The result as fake tensors of this mode; where an operation returns an argument, that argument."""
        if isinstance(result, _Argument):
            return arguments[result.position]
        if isinstance(result, TensorSpec):
            result = torch.empty_strided(result.sizes, result.strides, dtype=result.dtype, device="meta")
        elif isinstance(result, list | tuple):
            return type(result)(self._fake_result(item, arguments) for item in result)
        return FakeTensor(self, result, CPU) if isinstance(result, Tensor) else result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled here, so PyTorch need not disable its compiler for every operation."""
        return False


def new_fake_mode() -> OwnFakeMode:
    """The quick mode, if it works with this version of PyTorch, else PyTorch's own; both accept tensors with values."""
    return (QuickFakeMode if _works() else OwnFakeMode)(allow_non_fake_inputs=True)


_TRIALS: tuple[Callable[[], Any], ...] = (
    lambda: torch.ones(3, dtype=torch.int64) * 2.0,
    lambda: torch.split(torch.ones(4, 6).t().reshape(3, 8), 2),
    lambda: torch.ones(3).add_(1).to(torch.bfloat16),
    lambda: torch.nn.functional.embedding(torch.ones(2, 3, dtype=torch.int64), torch.ones(5, 4)).softmax(-1).max(1),
    lambda: torch.nn.functional.scaled_dot_product_attention(x := torch.ones(1, 2, 5, 8), x, x, is_causal=True),
)
"""Operations of each kind that the quick mode handles."""


@cache
def _works() -> bool:
    """Whether the quick mode gives the results of PyTorch's own on a few operations."""
    try:
        return all(_layouts(QuickFakeMode(), each) == _layouts(OwnFakeMode(), each) for each in _TRIALS)
    except Exception:  # whatever private parts raise that are missing or have changed
        return False


def _layouts(mode: FakeTensorMode, operation: Callable[[], Any]) -> list[TensorSpec]:
    with mode:
        return [TensorSpec.of(leaf) for leaf in tree_leaves(operation()) if isinstance(leaf, Tensor)]


class _Argument(NamedTuple):
    """A result that is one of the arguments, modified in place."""

    position: int


_aten = torch.ops.aten
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.slice.Tensor, _aten.select.int}
_MAKERS = {
    *(_aten.empty_like.default, _aten.zeros_like.default, _aten.ones_like.default, _aten.new_empty.default),
    *(_aten.copy_.default, _aten.embedding.default),
}
"""Operations that PyTorch's fake mode handles specially, for symbolic sizes or several devices."""

_LIFTS = {_aten.lift_fresh.default, _aten.lift_fresh_copy.default}
"""The last operation of `torch.tensor`, whose argument has values."""


@cache
def _kind(function: Any) -> Literal["unusual", "view", "maker"]:
    """`view` or `maker` if the operation's meta kernel is enough and it returns views or new tensors."""
    if function in _VIEWS:
        return "view"
    if function in _MAKERS:
        return "maker"
    if function.namespace != "aten" or torch.Tag.inplace_view in function.tags:
        return "unusual"
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")
    special = any(applies(function) for applies, _ in fake_impls.op_implementations_checks)
    if composite or special or not fake_impls.has_meta(function) or function in _LIFTS:
        return "unusual"
    aliases = [result.alias_info for result in function._schema.returns]
    return "view" if any(alias is not None and not alias.is_write for alias in aliases) else "maker"


def _all_fake(values: Iterable[Any]) -> bool:
    """Whether there are tensors and all of them are fake, on the CPU, and not constants."""
    items = [item for value in values for item in (value if isinstance(value, list | tuple) else (value,))]
    tensors = [item for item in items if isinstance(item, Tensor)]
    return bool(tensors) and all(
        isinstance(tensor, FakeTensor) and tensor.constant is None and tensor.fake_device == CPU for tensor in tensors
    )


def _key(value: Any) -> Any:
    """A hashable cache key of the value."""
    if isinstance(value, Tensor):
        return TensorSpec.of(value)
    return tuple(_key(item) for item in value) if isinstance(value, list | tuple) else value


_MODE = FakeTensorMode()


@lru_cache(maxsize=4096)
def _results(
    function: Any, names: tuple[str, ...], arguments: tuple[Any, ...], types: tuple[type, ...], default: torch.dtype
) -> Any:
    """The operation's result for such arguments, the last of which are keyword arguments with these names.

    `types` distinguishes 1 from 1.0, which give different dtypes with integer tensors; `default` is PyTorch's default
    dtype.

    Raises:
        NotImplementedError: the result depends on more than shapes.
    """

    def argument_of(value: Any) -> Any:
        if isinstance(value, TensorSpec):
            meta = torch.empty_strided(value.sizes, value.strides, dtype=value.dtype, device="meta")
            return FakeTensor(_MODE, meta, CPU)
        return [argument_of(item) for item in value] if isinstance(value, tuple) else value

    def described(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(described, value))
        if not isinstance(value, Tensor):
            return value
        index = next((index for index, argument in enumerate(values) if argument is value), None)
        if index is None:
            return TensorSpec.of(value)
        if TensorSpec.of(value) != arguments[index]:
            raise NotImplementedError("the operation resized its output argument")
        return _Argument(index)

    values = [argument_of(value) for value in arguments]
    positional = len(values) - len(names)
    with torch.no_grad(), fake_tensor.in_kernel_invocation_manager(_MODE):
        result = function(*values[:positional], **dict(zip(names, values[positional:], strict=True)))
    return described(result)
