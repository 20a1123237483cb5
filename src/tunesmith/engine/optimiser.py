"""AdamW on fp32 master weights in one flat vector, whatever the precision of the model (Micikevicius et al. 2018).

The model's weights are working copies. Each gradient is added into a flat fp32 vector the moment it is complete and
freed, so that accumulation loses nothing to rounding and at most one layer's gradient exists in working precision.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tunesmith.recipe import Train


class MasterWeights:
    """fp32 masters of the trained parameters, their summed gradients, and AdamW (Loshchilov & Hutter 2019, alg. 2).

    16 bytes a trained parameter: master, gradient and two moments; the working copy comes on top, except in fp32,
    where the model's own parameter is a view of its master.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], train: Train) -> None:
        trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        decayed = [pair for pair in trained if pair[1].ndim >= 2]
        others = [pair for pair in trained if pair[1].ndim < 2]  # norms and biases are not decayed
        self.parameters = [parameter for _, parameter in decayed + others]
        self.names = [name for name, _ in decayed + others]
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
        split = sum(parameter.numel() for _, parameter in decayed)
        groups = []
        for start, end, weight_decay in ((0, split, train.weight_decay), (split, len(self.flat), 0.0)):
            if end > start:
                group = nn.Parameter(self.flat[start:end])
                group.grad = self.grad[start:end]
                groups.append({"params": [group], "weight_decay": weight_decay})
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=train.betas, eps=train.eps, fused=True)

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
                group["lr"] = learning_rate
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
                tensors[f"adamw.{index}.{name}"] = value
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
            if state:
                self.adamw.state[group["params"][0]] = state
        self.publish()


def _add_into(total: Tensor) -> Callable[[Tensor], None]:
    """A hook that moves a finished gradient into its place in the flat sum."""

    def add(parameter: Tensor) -> None:
        if parameter.grad is not None:
            total.add_(parameter.grad)
            parameter.grad = None

    return add
