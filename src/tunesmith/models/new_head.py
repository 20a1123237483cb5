"""A head that is begun anew on a stored body."""

from collections.abc import Collection, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.models.heads import head_names


@torch.no_grad()
def initialize_head(model: PreTrainedModel, missing: Collection[str], is_trained: bool, seed: int) -> None:
    """Draw a new head's weights, and those of a pooler that the base does not store and the head reads.

    Such a pooler is new as well: it is noted in `model.new_modules`, so that it moves and is saved with the head.

    Args:
        model: as it was loaded.
        missing: names of parameters that the base does not store.
        learnt: whether the base has learnt this very head, which then stays.
        seed: of the head's weights. A pooler's are the same whatever it is: who loads the base again finds them.
    """
    pooler = f"{model.base_model_prefix}.pooler"
    new = [pooler] if any(name.startswith(f"{pooler}.") for name in missing) else []
    torch.manual_seed(0)
    _draw([model.get_submodule(name) for name in new], model)
    torch.manual_seed(seed)
    _draw([] if is_trained else [model.get_submodule(name) for name in head_names(model)], model)
    model.new_modules = new


def _draw(modules: Iterable[nn.Module], model: PreTrainedModel) -> None:
    """Normal weights of the family's spread, no biases, plain norms."""
    spread = getattr(model.config, "initializer_range", None) or 0.02
    for module in (inner for each in modules for inner in each.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif isinstance(module, nn.Linear):
                parameter.normal_(0.0, spread)
            else:
                parameter.fill_(1.0)
