"""The products of many LoRA adapters in one batch (Chen et al. 2023, "Punica"; Sheng et al. 2023, "S-LoRA").

y += scale · (x Aᵀ) Bᵀ (Hu et al. 2021, eq. 3), where each row of the batch has the A and B of its own adapter, or none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.ops import native


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One layer's part of an adapter.

    Attributes:
        a: (rank, in), fp32.
        b: (rank, out), fp32: the transpose of the B that files contain.
        scale: of the product.
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def has_effect(self) -> bool:
        """Whether the product is not zero for every row."""
        return bool(self.scale and self.a.any() and self.b.any())

    @property
    def bytes(self) -> int:
        return 4 * (self.a.numel() + self.b.numel())


class LoraLayers(tuple[LoraWeights | None, ...]):
    """An adapter's weights for every layer; None where it has none."""

    @cached_property
    def lines(self) -> NDArray[np.int64]:
        """Addresses, rank and scale of each layer (layers, 4), the last fields of `Adapted` in native/paged.h. A layer
        without weights has rank 0. Made once: a batch of many adapters has thousands of these."""
        lines = np.zeros((len(self), 4), np.int64)
        for line, own in zip(lines, self, strict=True):
            if own is not None:
                line[:] = own.a.data_ptr(), own.b.data_ptr(), len(own.a), np.float64(own.scale).view(np.int64)
        return lines


LoraRows = tuple[int, int, Sequence[LoraWeights | None]]
"""The first of consecutive rows, how many, and their adapter's weights for every layer: best as `LoraLayers`."""


class RowProducts:
    """Which rows of a batch belong to which adapter, for every layer.

    Args:
        rows: consecutive rows of the same adapter. Rows that are not named have no adapter.
    """

    def __init__(self, rows: Sequence[LoraRows]) -> None:
        self.rows = rows
        self._tables = np.zeros((len(rows[0][2]) if rows else 0, len(rows), 6), np.int64)
        for index, (first, count, weights) in enumerate(rows):
            layers = weights if isinstance(weights, LoraLayers) else LoraLayers(weights)
            self._tables[:, index, 0], self._tables[:, index, 1] = first, count
            self._tables[:, index, 2:] = layers.lines
        self._adapted = [bool(line.any()) for line in self._tables[:, :, 4]]

    def add(self, layer: int, x: Tensor, y: Tensor) -> None:
        """Add the adapters' products of a layer to y, in place.

        Args:
            layer: its number.
            x: (rows, in): the layer's input.
            y: (rows, out): its output.
        """
        table = self.table(layer)
        if table is None:
            return
        if not native.takes(x, y) or y.dtype != torch.float32 or not y.is_contiguous():
            self.add_reference(layer, x, y)
            return
        x = x.contiguous()
        native.call_named("adapt_rows", x, table.ctypes.data, len(table), x.shape[1], y.shape[1], y)

    def table(self, layer: int) -> NDArray[np.int64] | None:
        """A layer's adapters as the kernels read them (adapters, 6); None if there are none."""
        return self._tables[layer] if len(self._tables) and self._adapted[layer] else None

    def add_reference(self, layer: int, x: Tensor, y: Tensor) -> None:
        """The definition. `add` is tested against this."""
        for first, count, weights in self.rows:
            own, rows = weights[layer], slice(first, first + count)
            if own is not None:
                a, b = own.a.to(x.device), own.b.to(x.device)
                y[rows] += (own.scale * (x[rows].float() @ a.T) @ b).to(y.dtype)
