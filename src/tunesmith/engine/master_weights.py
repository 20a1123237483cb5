"""fp32 master weights in one flat vector, whatever the precision of the model (Micikevicius et al. 2018).

The model's weights are working copies. As soon as a gradient is complete, it is added to a flat fp32 vector and freed.
So accumulation happens in fp32, and at most one layer's gradient exists in the working precision.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.config.train import Train
from tunesmith.engine.optimizers import MATRIX_OPTIMIZERS, make_optimizers, parameters_of

GROUP_STATE = ("step", "weight_sum", "lr_max")
"""State that some optimizers keep per parameter group, besides their settings."""


class MasterWeights:
    """fp32 masters of the trained parameters, their summed gradients, and their optimizers.

    With AdamW this takes 16 bytes per trained parameter: master, gradient and two moments; a moving average adds 4. The
    working copy adds its own size, except in fp32, where the model's parameter is a view of its master.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        train: Train,
        rate_factor: Callable[[str], float] = lambda _: 1.0,
        is_hidden: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Args:
        named_parameters: those that require gradients are trained.
        train: the optimizer and its settings.
        rate_factor: the factor on the learning rate, by parameter name.
        is_hidden: whether the parameter with that name is inside a block; used by Muon only.
        """
        trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        # Norms and biases have no weight decay, and are not matrices.
        settings = {
            name: (rate_factor(name), parameter.ndim >= 2, parameter.ndim == 2 and is_hidden(name))
            for name, parameter in trained
        }
        trained.sort(key=lambda pair: settings[pair[0]], reverse=True)  # parameters with equal settings are contiguous
        self.parameters = [parameter for _, parameter in trained]
        self.names = [name for name, _ in trained]
        sizes = [parameter.numel() for parameter in self.parameters]
        device = self.parameters[0].device
        self.flat = torch.empty(sum(sizes), dtype=torch.float32, device=device)
        self.grad = torch.zeros_like(self.flat)
        self.views = [
            view.view_as(parameter) for view, parameter in zip(self.flat.split(sizes), self.parameters, strict=True)
        ]
        grads = [
            grad.view_as(parameter) for grad, parameter in zip(self.grad.split(sizes), self.parameters, strict=True)
        ]
        self._hooks = []
        for view, parameter, grad in zip(self.views, self.parameters, grads, strict=True):
            view.copy_(parameter.detach())
            if parameter.dtype == view.dtype:
                parameter.data = view
            self._hooks.append(parameter.register_post_accumulate_grad_hook(_add_into(grad)))
        groups = []
        first = start = 0
        for factor, decays, hidden in dict.fromkeys(settings[name] for name in self.names):
            count = sum(setting == (factor, decays, hidden) for setting in settings.values())
            end = start + sum(sizes[first : first + count])
            if train.optimizer in MATRIX_OPTIMIZERS:
                params = [_with_gradient(*pair) for pair in zip(self.views, grads, strict=True)][first : first + count]
            else:
                params = [_with_gradient(self.flat[start:end], self.grad[start:end])]
            weight_decay = train.weight_decay if decays else 0.0
            groups.append({"params": params, "weight_decay": weight_decay, "rate_factor": factor, "hidden": hidden})
            first, start = first + count, end
        self.rules = make_optimizers(groups, train, device)
        self.ema_decay = train.ema_decay
        self.average = self.flat.clone() if train.ema_decay is not None else None
        self.updates = 0

    def step(self, learning_rate: float, loss_tokens: int, max_grad_norm: float) -> float:
        """Divide the summed gradient by the loss tokens, clip it, take an optimizer step, and publish to the model.

        Returns:
            The norm of the mean gradient before clipping. If it is not finite, the weights are unchanged. The summed
            gradient is zero afterwards in any case.
        """
        norm = float(torch.linalg.vector_norm(self.grad)) / loss_tokens
        if math.isfinite(norm):
            self.grad.mul_(min(1.0, max_grad_norm / (norm + 1e-6)) / loss_tokens)
            for rule in self.rules:
                for group in rule.param_groups:
                    group["lr"] = learning_rate * group["rate_factor"]
                rule.step()
            self.updates += 1
            if self.average is not None and self.ema_decay is not None:
                # Average over fewer updates early on; else the start would dominate for 1 / (1 − decay) updates.
                decay = min(self.ema_decay, (1 + self.updates) / (10 + self.updates))
                self.average.lerp_(self.flat, 1 - decay)
            self.publish()
        self.grad.zero_()
        return norm

    @property
    def evaluates_average(self) -> bool:
        """Whether evaluation uses an average of the weights instead of the trained weights themselves."""
        return self.average is not None or any(hasattr(rule, "eval") for rule in self.rules)

    def take_average(self) -> None:
        """Replace the masters by the weights for evaluation and saving. Training cannot continue from them."""
        if self.average is not None:
            self.flat.copy_(self.average)
        for rule in self.rules:
            if hasattr(rule, "eval"):
                rule.eval()
        self.publish()

    def finish(self) -> None:
        """Give the model its final weights and free everything that only training needs, since saving takes memory
        of its own."""
        self.take_average()
        for hook in self._hooks:
            hook.remove()
        self.rules, self.average = [], None
        self.grad = self.flat.new_empty(0)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context, the model has the weights for evaluation."""
        if not self.evaluates_average:
            yield
            return
        trained = self.flat.clone()
        self.take_average()
        try:
            yield
        finally:
            for rule in self.rules:
                if hasattr(rule, "eval"):
                    rule.train()  # type: ignore[attr-defined]
            self.flat.copy_(trained)  # bit for bit
            self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters, rounded, into the model's working copies."""
        for view, parameter in zip(self.views, self.parameters, strict=True):
            if parameter.data_ptr() != view.data_ptr():
                parameter.copy_(view)

    def unrounded(self) -> dict[str, Tensor]:
        """The fp32 masters by parameter name; they share memory with this object."""
        return dict(zip(self.names, self.views, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as tensors."""
        tensors = {"master": self.flat, "updates": torch.tensor(self.updates)}
        if self.average is not None:
            tensors["average"] = self.average
        for index, (rule, parameter) in enumerate(parameters_of(self.rules)):
            for name, value in rule.state[parameter].items():
                tensors[f"update.{index}.{name}"] = torch.as_tensor(value)
        for index, group in enumerate(self._groups()):
            for name in GROUP_STATE:
                if name in group:
                    tensors[f"group.{index}.{name}"] = torch.tensor(group[name], dtype=torch.float64)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Load the tensors of `state`, and publish them to the model."""
        with torch.no_grad():
            self.flat.copy_(tensors["master"])
            if self.average is not None:
                self.average.copy_(tensors["average"])
        self.updates = int(tensors["updates"])
        for index, (rule, parameter) in enumerate(parameters_of(self.rules)):
            saved = _under(tensors, f"update.{index}.")
            state: dict[str, Any] = {name: value.to(self.flat.device, copy=True) for name, value in saved.items()}
            if "step" in state and not isinstance(rule, torch.optim.AdamW):
                state["step"] = int(state["step"])  # the other optimizers count in plain ints
            rule.state.pop(parameter, None)  # of later steps, when an earlier checkpoint is restored
            if state:
                rule.state[parameter] = state
        for index, group in enumerate(self._groups()):
            for name, value in _under(tensors, f"group.{index}.").items():
                group[name] = int(value) if name == "step" else float(value)
        self.publish()

    def _groups(self) -> list[dict[str, Any]]:
        return [group for rule in self.rules for group in rule.param_groups]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _with_gradient(values: Tensor, grad: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(values)
    parameter.grad = grad
    return parameter


def _add_into(total: Tensor) -> Callable[[Tensor], None]:
    """A hook that adds a finished gradient to its slice of the flat sum."""

    def add(parameter: Tensor) -> None:
        if parameter.grad is not None:
            total.add_(parameter.grad)
            parameter.grad = None

    return add
