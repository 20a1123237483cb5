"""GPT-2's layers hold their weights as (in, out); here they are linear layers while in use, and as stored when written.

So methods that know linear layers alone work on that family too, and through the same fused code.
"""

from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Model = TypeVar("Model", bound=PreTrainedModel)


class TurnedLinear(nn.Linear):
    """A linear layer that is stored as (in, out)."""


def as_linear(model: Model) -> Model:
    """Every `Conv1D` of the model as a linear layer."""
    for parent, name, child in _children(model, Conv1D):
        layer = TurnedLinear(child.weight.shape[0], child.weight.shape[1], device="meta")
        _turn(child, layer)
        setattr(parent, name, layer)
    return model


def as_stored(model: Model) -> Model:
    """Every such layer as the `Conv1D` that its family stores."""
    for parent, name, child in _children(model, TurnedLinear):
        layer = Conv1D(0, 0)
        layer.nf, layer.nx = child.out_features, child.in_features
        _turn(child, layer)
        setattr(parent, name, layer)
    return model


def _turn(source: Any, target: Any) -> None:
    """Move weight, turned, and bias; the source lets go of them, so that no two models are held at once."""
    weight = source.weight
    target.weight = nn.Parameter(weight.data.T.contiguous(), requires_grad=weight.requires_grad)
    target.bias = source.bias
    del source.weight, source.bias


def _children(model: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]
