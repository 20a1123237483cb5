"""Dropout off for good: rollouts are scored and trained on by the function that sampled them."""

from torch import nn


def without_dropout(model: nn.Module) -> None:
    """Turn all dropout off, in place: that of modules, and the probabilities that families keep as numbers.

    Args:
        model: with the method applied.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
