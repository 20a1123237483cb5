"""AdamW on fp32 master weights in one flat vector, whatever the precision of the model (Micikevicius et al. 2018).

The model's weights are working copies. Each gradient is added into a flat fp32 vector the moment it is complete and
freed, so that accumulation loses nothing to rounding and at most one layer's gradient exists in working precision.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.recipe import Train


class MasterWeights:
    """fp32 masters of the trained parameters, their summed gradients, and AdamW (Loshchilov & Hutter 2019, alg. 2).

    16 bytes a trained parameter: master, gradient and two moments; the working copy comes on top, except in fp32,
    where the model's own parameter is a view of its master.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        train: Train,
        rate_factor: Callable[[str], float] = lambda _: 1.0,
    ) -> None:
        """Args:
        named_parameters: those that require gradients are trained.
        train: the optimiser and its settings.
        rate_factor: what the learning rate is multiplied by for a parameter of that name.
        """
        trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        settings = {name: (rate_factor(name), parameter.ndim >= 2) for name, parameter in trained}
        trained.sort(key=lambda pair: settings[pair[0]], reverse=True)  # those of one setting lie side by side
        self.parameters = [parameter for _, parameter in trained]
        self.names = [name for name, _ in trained]
        sizes = [parameter.numel() for parameter in self.parameters]
        device = self.parameters[0].device
        self.flat = torch.empty(sum(sizes), dtype=torch.float32, device=device)
        self.grad = torch.zeros_like(self.flat)
        self.views = [
            view.view_as(parameter) for view, parameter in zip(self.flat.split(sizes), self.parameters, strict=True)
        ]
        for view, parameter, grad in zip(self.views, self.parameters, self.grad.split(sizes), strict=True):
            view.copy_(parameter.detach())
            if parameter.dtype == view.dtype:
                parameter.data = view
            parameter.register_post_accumulate_grad_hook(_add_into(grad.view_as(parameter)))
        groups = []
        end = 0
        for factor, decays in dict.fromkeys(settings[name] for name in self.names):
            start = end
            end += sum(each.numel() for name, each in trained if settings[name] == (factor, decays))
            group = nn.Parameter(self.flat[start:end])
            group.grad = self.grad[start:end]
            weight_decay = train.weight_decay if decays else 0.0  # norms and biases are not decayed
            groups.append({"params": [group], "weight_decay": weight_decay, "rate_factor": factor})
        self.adamw = _adamw(groups, train, device)

    def step(self, learning_rate: float, learnt_tokens: int, max_grad_norm: float) -> float:
        """Divide the summed gradient by the learnt tokens, clip it, update, and publish to the model.

        Returns:
            The norm of the mean gradient before clipping. If it is not finite nothing has been changed; in any case
            the summed gradient is zero again.
        """
        norm = float(torch.linalg.vector_norm(self.grad)) / learnt_tokens
        if math.isfinite(norm):
            self.grad.mul_(min(1.0, max_grad_norm / (norm + 1e-6)) / learnt_tokens)
            for group in self.adamw.param_groups:
                group["lr"] = learning_rate * group["rate_factor"]
            self.adamw.step()
            self.publish()
        self.grad.zero_()
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model's working copies."""
        for view, parameter in zip(self.views, self.parameters, strict=True):
            if parameter.data_ptr() != view.data_ptr():
                parameter.copy_(view)

    def unrounded(self) -> dict[str, Tensor]:
        """The masters by parameter name, fp32, sharing memory with this object."""
        return dict(zip(self.names, self.views, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as tensors."""
        tensors = {"master": self.flat}
        for index, group in enumerate(self.adamw.param_groups):
            for name, value in self.adamw.state[group["params"][0]].items():
                tensors[f"adamw.{index}.{name}"] = torch.as_tensor(value)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up a `state` again; the model's working copies follow."""
        with torch.no_grad():
            self.flat.copy_(tensors["master"])
        for index, group in enumerate(self.adamw.param_groups):
            prefix = f"adamw.{index}."
            state = {
                name.removeprefix(prefix): value.to(self.flat.device, copy=True)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
            if "state1" in state:
                state["step"] = int(state["step"])  # type: ignore[assignment]  # bitsandbytes counts in plain numbers
            if state:
                self.adamw.state[group["params"][0]] = state
        self.publish()


def runs_in_eight_bits(train: Train, device: torch.device) -> bool:
    """Whether the recipe's 8-bit optimiser is one here: bitsandbytes has it for CUDA alone."""
    return train.optimiser != "adamw" and device.type == "cuda"


def _adamw(groups: list[dict[str, Any]], train: Train, device: torch.device) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": 0.0, "betas": train.betas, "eps": train.eps}
    if not runs_in_eight_bits(train, device):
        return torch.optim.AdamW(groups, **settings, fused=True)
    import bitsandbytes.optim

    name = "PagedAdamW8bit" if train.optimiser == "paged_adamw_8bit" else "AdamW8bit"
    kind = getattr(bitsandbytes.optim, name)
    found: torch.optim.Optimizer = kind(groups, **settings)
    return found


def _add_into(total: Tensor) -> Callable[[Tensor], None]:
    """A hook that moves a finished gradient into its place in the flat sum."""

    def add(parameter: Tensor) -> None:
        if parameter.grad is not None:
            total.add_(parameter.grad)
            parameter.grad = None

    return add
