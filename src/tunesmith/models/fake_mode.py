"""PyTorch's fake tensors, with less ado.

A plan carries out thousands of operations on tensors without numbers. PyTorch's own mode takes some 200 µs for each,
most of it to make a key for its cache and to see to sizes that nobody knows yet. Here there are none of those, and one
device.
"""

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_impls import has_meta, op_implementations_checks
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

CPU = torch.device("cpu")


class Shape(NamedTuple):
    """What an operation sees of a tensor."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Shape":
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    @property
    def numbers(self) -> int:
        return prod(self.sizes)

    @property
    def bytes(self) -> int:
        return self.numbers * self.dtype.itemsize


class QuickFakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """What an operation makes of its arguments' shapes is found out once for all; PyTorch's own mode sees to what is
    unusual."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function is torch.ops.prim.device.default:
            return arguments[0].fake_device
        kind = _kind(function)
        given = (*arguments, *keywords.values())
        if kind != "unusual" and "device" not in keywords and _all_fake(given):
            try:
                if kind == "maker":
                    types_given = tuple(map(type, given))
                    made = _results(function, tuple(keywords), _told(given), types_given, torch.get_default_dtype())
                    return self._fake_result(made, given)
                with in_kernel_invocation_manager(self):
                    return self._fake_result(function(*arguments, **keywords))
            except NotImplementedError:  # its kernel for shapes leads to one that wants numbers
                pass
        return super().__torch_dispatch__(function, types, arguments, keywords)

    def _fake_result(self, found: Any, given: Sequence[Any] = ()) -> Any:
        """What was made or told of as tensors of this mode, or the arguments that came back."""
        if isinstance(found, _Argument):
            return given[found.place]
        if isinstance(found, Shape):
            found = torch.empty_strided(found.sizes, found.strides, dtype=found.dtype, device="meta")
        elif isinstance(found, list | tuple):
            return type(found)(self._fake_result(each, given) for each in found)
        return FakeTensor(self, found, CPU) if isinstance(found, Tensor) else found

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, so PyTorch's compiler need not be kept out at every operation."""
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuickFakeMode":
        """PEFT copies a new head deeply, and with its tensors their mode: a copy of that frees PyTorch's weak
        references a second time, which breaks the heap."""
        return self


class _Argument(NamedTuple):
    """A result that is an argument, written to."""

    place: int


_aten = torch.ops.aten
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.slice.Tensor, _aten.select.int}
_MAKERS = {
    *(_aten.empty_like.default, _aten.zeros_like.default, _aten.ones_like.default, _aten.new_empty.default),
    *(_aten.copy_.default, _aten.embedding.default),
}
"""Operations that PyTorch's fake mode treats apart, for sizes that nobody knows yet or for several devices."""

_LIFTS = {_aten.lift_fresh.default, _aten.lift_fresh_copy.default}
"""What `torch.tensor` ends with: something with numbers comes in."""


@cache
def _kind(function: Any) -> Literal["unusual", "view", "maker"]:
    """Whether the operation's kernel for shapes says all of it, and makes views of an argument or something new."""
    if function in _VIEWS:
        return "view"
    if function in _MAKERS:
        return "maker"
    if function.namespace != "aten" or torch.Tag.inplace_view in function.tags:
        return "unusual"
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")
    special = any(asked(function) for asked, _ in op_implementations_checks)
    if composite or special or not has_meta(function) or function in _LIFTS:
        return "unusual"
    aliases = [each.alias_info for each in function._schema.returns]
    return "view" if any(each is not None and not each.is_write for each in aliases) else "maker"


def _all_fake(values: Iterable[Any]) -> bool:
    """Whether there are tensors, and each is without numbers, on the CPU, and none a constant."""
    tensors = [each for value in values for each in (value if isinstance(value, list | tuple) else (value,))]
    tensors = [each for each in tensors if isinstance(each, Tensor)]
    return bool(tensors) and all(
        isinstance(each, FakeTensor) and each.constant is None and each.fake_device == CPU for each in tensors
    )


def _told(value: Any) -> Any:
    """Something that can be compared."""
    if isinstance(value, Tensor):
        return Shape.of(value)
    return tuple(_told(each) for each in value) if isinstance(value, list | tuple) else value


_MODE = FakeTensorMode()


@lru_cache(maxsize=4096)
def _results(
    function: Any, names: tuple[str, ...], arguments: tuple[Any, ...], types: tuple[type, ...], default: torch.dtype
) -> Any:
    """What the operation makes of such arguments, the last of which have names. `types` tells 1 from 1.0, which make
    other things of whole numbers; `default` is PyTorch's own precision.

    Raises:
        NotImplementedError: shapes alone do not tell.
    """

    def given(value: Any) -> Any:
        if isinstance(value, Shape):
            made = torch.empty_strided(value.sizes, value.strides, dtype=value.dtype, device="meta")
            return FakeTensor(_MODE, made, CPU)
        return [given(each) for each in value] if isinstance(value, tuple) else value

    def told(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(told, value))
        if not isinstance(value, Tensor):
            return value
        place = next((place for place, each in enumerate(values) if each is value), None)
        if place is None:
            return Shape.of(value)
        if Shape.of(value) != arguments[place]:
            raise NotImplementedError("what is written to has become larger")
        return _Argument(place)

    values = [given(each) for each in arguments]
    unnamed = len(values) - len(names)
    with torch.no_grad(), in_kernel_invocation_manager(_MODE):
        found = function(*values[:unnamed], **dict(zip(names, values[unnamed:], strict=True)))
    return told(found)
