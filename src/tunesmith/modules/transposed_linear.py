"""GPT-2's layers store their weights as (in, out). They are linear layers while in use, and are saved as stored.

So methods that support only linear layers work on that family too, with the same fused code.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Model = TypeVar("Model", bound=PreTrainedModel)


class TransposedLinear(nn.Linear):
    """A linear layer whose weight is stored transposed, as (in, out)."""


def as_linear(model: Model) -> Model:
    """Replace every `Conv1D` of the model with a linear layer, in place."""

    def linear(layer: Any) -> nn.Module:
        return TransposedLinear(layer.weight.shape[0], layer.weight.shape[1], device="meta")

    return _replaced(model, Conv1D, linear)


def as_stored(model: Model) -> Model:
    """Replace every `TransposedLinear` with the `Conv1D` that its family stores, in place."""

    def stored(layer: Any) -> nn.Module:
        made: nn.Module = Conv1D(0, 0)
        made.nf, made.nx = layer.out_features, layer.in_features
        return made

    return _replaced(model, TransposedLinear, stored)


def _replaced(model: Model, kind: type[nn.Module], other: Callable[[Any], nn.Module]) -> Model:
    """The model with layers of a kind replaced. The new layers take the bias and the transposed weight, and the old
    ones drop theirs, so that the weights are never in memory twice."""
    made: dict[nn.Module, Any] = {}
    children = [(parent, *child) for parent in model.modules() for child in parent.named_children()]
    for parent, name, layer in children:
        if not isinstance(layer, kind):
            continue
        if layer not in made:
            made[layer] = other(layer)
            weight: Any = layer.weight
            made[layer].weight = nn.Parameter(weight.data.T.contiguous(), requires_grad=weight.requires_grad)
            made[layer].bias = layer.bias
            del layer.weight, layer.bias
        setattr(parent, name, made[layer])
    return model
