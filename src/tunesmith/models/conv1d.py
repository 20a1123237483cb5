"""GPT-2's layers hold their weights as (in, out); here they are linear layers while in use, and as stored when written.

So methods that know linear layers alone work on that family too, and through the same fused code.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Model = TypeVar("Model", bound=PreTrainedModel)


class TurnedLinear(nn.Linear):
    """A linear layer that is stored as (in, out)."""


def as_linear(model: Model) -> Model:
    """Every `Conv1D` of the model as a linear layer."""

    def linear(layer: Any) -> nn.Module:
        return TurnedLinear(layer.weight.shape[0], layer.weight.shape[1], device="meta")

    return _exchanged(model, Conv1D, linear)


def as_stored(model: Model) -> Model:
    """Every such layer as the `Conv1D` that its family stores."""

    def stored(layer: Any) -> nn.Module:
        made: nn.Module = Conv1D(0, 0)
        made.nf, made.nx = layer.out_features, layer.in_features
        return made

    return _exchanged(model, TurnedLinear, stored)


def _exchanged(model: Model, kind: type[nn.Module], other: Callable[[Any], nn.Module]) -> Model:
    """Layers of a kind exchanged for others, which take weight, turned, and bias; those that were there let go of them,
    so that no two models are held at once."""
    made: dict[nn.Module, Any] = {}
    places = [(parent, *child) for parent in model.modules() for child in parent.named_children()]
    for parent, name, layer in places:
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
