"""Optimizers, each from the library that maintains it."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tunesmith.config.train import Train
from tunesmith.errors import UserError

Group = dict[str, Any]
"""`params`, `weight_decay`, `rate_factor`, and `hidden`: whether the parameters are matrices inside the blocks."""

MATRIX_OPTIMIZERS = ("adafactor", "muon")
"""Optimizers that depend on rows and columns. The others treat every element alike, and get one flat vector."""

CUDA_ONLY = ("adamw_8bit", "paged_adamw_8bit")

RATES = {"lion": 0.2}
"""Factors on a method's default learning rate, which is for AdamW. Lion's update has full size in every element, and
its authors recommend rates three to ten times smaller (Chen et al. 2023, section 5)."""


def falls_back_to_adamw(train: Train, device: torch.device) -> bool:
    """Whether the recipe's optimizer is not available on this device, so that AdamW replaces it."""
    return train.optimizer in CUDA_ONLY and device.type != "cuda"


def make_optimizers(groups: Sequence[Group], train: Train, device: torch.device) -> list[Optimizer]:
    """The recipe's optimizer for the groups. Muon comes with AdamW for parameters that are not matrices inside a block.

    Raises:
        UserError: it needs a package that is not installed.
    """
    name = "adamw" if falls_back_to_adamw(train, device) else train.optimizer
    if name == "muon":
        hidden = [group for group in groups if group["hidden"]]
        others = [group for group in groups if not group["hidden"]]
        rules = [torch.optim.Muon(hidden, lr=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")] if hidden else []
        return [*rules, *([_adamw(others, train)] if others else [])]
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return [Adafactor(groups, lr=0.0, scale_parameter=False, relative_step=False)]
    if name in ("lion", "schedule_free"):
        return [_from_pytorch_optimizer(name, groups, train)]
    if name in CUDA_ONLY:
        import bitsandbytes.optim

        optimizer_class = getattr(bitsandbytes.optim, "PagedAdamW8bit" if name == "paged_adamw_8bit" else "AdamW8bit")
        return [optimizer_class(groups, lr=0.0, betas=train.betas, eps=train.eps)]
    return [_adamw(groups, train)]


def _adamw(groups: Sequence[Group], train: Train) -> Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=train.betas, eps=train.eps, fused=True)


def _from_pytorch_optimizer(name: str, groups: Sequence[Group], train: Train) -> Optimizer:
    if find_spec("pytorch_optimizer") is None:
        raise UserError(
            f"train.optimizer: {name} needs a package that is not installed. pip install 'tunesmith[optimizers]'"
        )
    import pytorch_optimizer

    rule: Optimizer
    if name == "lion":
        rule = pytorch_optimizer.Lion(groups, lr=0.0, betas=(0.9, 0.99))
    else:
        rule = pytorch_optimizer.ScheduleFreeAdamW(groups, lr=0.0, betas=train.betas, eps=train.eps)
    return rule


def parameters_of(rules: Sequence[Optimizer]) -> list[tuple[Optimizer, nn.Parameter]]:
    """Every parameter with its optimizer, in order."""
    return [(rule, parameter) for rule in rules for group in rule.param_groups for parameter in group["params"]]
