"""The factors of many IA3 adapters in one batch (Liu et al. 2022, eq. 1).

y = l_out ⊙ ((l_in ⊙ x) Wᵀ + b), where each row of the batch has the l_in and l_out of its own adapter, or none. A
product of two numbers is rounded once, so that a row's bits do not depend on the rows beside it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """One layer's part of an adapter.

    Attributes:
        inputs: (in,), fp32; None: the layer's input stays as it is.
        outputs: (out,), fp32; None: the layer's output stays as it is.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None

    @property
    def own(self) -> tuple[Tensor, ...]:
        """Those that there are."""
        return tuple(each for each in (self.inputs, self.outputs) if each is not None)

    @property
    def has_effect(self) -> bool:
        """Whether any of them is not one."""
        return any(bool((each != 1).any()) for each in self.own)

    @property
    def bytes(self) -> int:
        return sum(4 * each.numel() for each in self.own)


FactorRows = tuple[int, int, Mapping[int, Factors]]
"""The first of consecutive rows, how many, and their adapter's factors by the layer's number."""


class RowFactors:
    """Which rows of a batch are scaled by which adapter, for every layer.

    Args:
        rows: consecutive rows of the same adapter. Rows that are not named stay as they are.
    """

    def __init__(self, rows: Sequence[FactorRows]) -> None:
        self._inputs: dict[int, list[tuple[slice, Tensor]]] = defaultdict(list)
        self._outputs: dict[int, list[tuple[slice, Tensor]]] = defaultdict(list)
        for first, count, layers in rows:
            for layer, factors in layers.items():
                for found, own in ((self._inputs, factors.inputs), (self._outputs, factors.outputs)):
                    if own is not None:
                        found[layer].append((slice(first, first + count), own))

    def __bool__(self) -> bool:
        return bool(self._inputs or self._outputs)

    def scaled_inputs(self, layer: int, x: Tensor) -> Tensor:
        """A layer's input (rows, in) with the factors of its rows; x itself if there are none."""
        return _scale(x.clone(), self._inputs[layer]) if layer in self._inputs else x

    def scale_outputs(self, layer: int, y: Tensor) -> None:
        """Multiply a layer's output (rows, out) by the factors of its rows, in place."""
        _scale(y, self._outputs.get(layer, ()))


def _scale(x: Tensor, factors: Sequence[tuple[slice, Tensor]]) -> Tensor:
    for rows, own in factors:
        x[rows].mul_(own.to(x.device))
    return x
