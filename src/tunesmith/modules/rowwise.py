"""Row-by-row computation for the generation engine: PyTorch's kernels compute a tensor's last few numbers with other
instructions than the rest, and add up a product in an order that depends on the number of rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

FUNCTIONS = frozenset(
    (
        *(torch.sigmoid, Tensor.sigmoid, functional.softplus, functional.silu, functional.gelu),
        *(functional.elu, functional.selu, functional.mish),
    )
)
"""What families call outside of an activation module, and whose last numbers can be other ones."""


def row_by_row(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, computed row by row.

    Args:
        function: of a tensor (..., n), whose outputs, tensors (rows, k) or (..., k), depend on each row alone.

    Returns:
        The function. An output of another kind is that of the first row.
    """

    def of_rows(x: Tensor, *arguments: Any, **options: Any) -> Any:
        one = (1,) * (x.ndim - 1)
        parts = [function(row.view(*one, -1), *arguments, **options) for row in x.reshape(-1, x.shape[-1])]
        if len(parts) == 1:
            return parts[0]
        if isinstance(parts[0], Tensor):
            return _joined(parts)
        return tuple(_joined(each) for each in zip(*parts, strict=True))

    return of_rows


def _joined(parts: Any) -> Any:
    """Outputs (1, k) or (1, 1, k) of rows, one after another."""
    return torch.cat(parts, dim=parts[0].ndim - 2) if isinstance(parts[0], Tensor) else parts[0]


class RowwiseActivation(nn.Module):
    """An activation, computed row by row."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        for index in range(len(rows)):
            out[index] = self.activation(rows[index])
        return out.view(x.shape)


def serve_activations(model: PreTrainedModel) -> None:
    """Compute the model's activations row by row, in place; of gated feed-forwards only those that are not fused."""
    for parent in [module for module in model.modules() if not isinstance(module, RowwiseActivation)]:
        for name, child in list(parent.named_children()):
            where = type(child).__module__
            if where.startswith(("transformers.activations", "torch.nn.modules.activation")):
                setattr(parent, name, RowwiseActivation(child))


class RowwiseFunctions(TorchFunctionMode):
    """While it is entered, calls of `FUNCTIONS` are computed row by row.

    Attributes:
        used: whether there was such a call, of more than one row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used = False

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        x = arguments[0] if function in FUNCTIONS and arguments else None
        if not isinstance(x, Tensor) or x.ndim < 2 or x.numel() == x.shape[-1]:
            return function(*arguments, **options)
        self.used = True
        rows = [function(row, *arguments[1:], **options) for row in x.reshape(-1, x.shape[-1])]
        return torch.stack(rows).view(x.shape)
