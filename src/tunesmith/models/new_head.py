"""Initialize a new head on a pretrained body."""

from collections.abc import Collection, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.models.heads import head_names


@torch.no_grad()
def initialize_head(model: PreTrainedModel, missing: Collection[str], is_trained: bool, seed: int) -> None:
    """Initialize a new head at random, and also a pooler that the head reads if the base does not store one.

    Such a pooler is recorded in `model.new_modules`, so that it is trained and saved with the head.

    Args:
        model: the model as loaded.
        missing: names of parameters that the base does not store.
        is_trained: whether the base already has this head trained. Then the head is kept.
        seed: of the head's weights. A pooler's weights do not depend on it, so that loading the base again gives the
            same pooler.
    """
    pooler = f"{model.base_model_prefix}.pooler"
    new = [pooler] if any(name.startswith(f"{pooler}.") for name in missing) else []
    torch.manual_seed(0)
    _initialize([model.get_submodule(name) for name in new], model)
    torch.manual_seed(seed)
    _initialize([] if is_trained else [model.get_submodule(name) for name in head_names(model)], model)
    model.new_modules = new


def _initialize(modules: Iterable[nn.Module], model: PreTrainedModel) -> None:
    """Normal weights with the family's initializer range, zero biases, and ones for norms."""
    spread = getattr(model.config, "initializer_range", None) or 0.02
    for module in (inner for outer in modules for inner in outer.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif isinstance(module, nn.Linear):
                parameter.normal_(0.0, spread)
            else:
                parameter.fill_(1.0)
