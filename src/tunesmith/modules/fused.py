"""Replace parts of a loaded model with fused ones that give the same results.

Families differ in small ways (Gemma's norm multiplies by 1 + w), so each part is tested on inputs, not matched by name.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.ops.dropout import dropout
from tunesmith.ops.gated import Activation, gated, gated_linear
from tunesmith.ops.lora_linear import LinearParts, MadeFrom
from tunesmith.ops.rms_norm import rms_norm
from tunesmith.ops.rotary import rotary, rotary_reference

Trial = Callable[[nn.Module], AbstractContextManager[nn.Module]]
"""A context in which a module, or another one that computes the same, can be tried on inputs and its outputs read."""


def use_fused_ops(model: PreTrainedModel, trial: Trial = nullcontext) -> None:
    """Run norms, dropout, gated feed-forwards and rotary embeddings with tunesmith.ops. Call before adding adapters.

    Args:
        model: any.
        trial: where parts are tried. Default: as they are.
    """
    use_fused_norms(model, trial)
    use_fused_dropout(model)
    use_fused_feed_forwards(model, trial)
    use_fused_rotary(model, trial)


class FusedRMSNorm(nn.Module):
    """An RMSNorm whose weight has the same parameter name as in the module that it replaces."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        out = rms_norm(hidden_states, self.weight, self.eps)
        out.made_from = MadeFrom(self._make, (hidden_states, self.weight))  # type: ignore[attr-defined]
        return out

    def _make(self, hidden_states: Tensor, weight: Tensor) -> Tensor:
        with torch.no_grad():
            return rms_norm(hidden_states, weight, self.eps)


def use_fused_norms(model: PreTrainedModel, trial: Trial = nullcontext) -> int:
    """Replace every RMSNorm of the model whose output `rms_norm` reproduces. Returns how many."""
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            eps = getattr(child, "variance_epsilon", None)
            if type(child).__name__.endswith("RMSNorm") and eps is not None and _same_norm(child, eps, trial):
                setattr(parent, name, FusedRMSNorm(child.weight, eps))
                replaced += 1
    return replaced


@torch.no_grad()
def _same_norm(norm: nn.Module, eps: float, trial: Trial) -> bool:
    weight = norm.weight
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or len(list(norm.parameters())) != 1:
        return False
    with trial(norm) as module:
        weight = next(module.parameters())
        probe = torch.linspace(-2, 3, 2 * len(weight), device=weight.device, dtype=weight.dtype).view(2, -1)
        return equal_within_rounding(module(probe), rms_norm(probe, weight, eps))


def equal_within_rounding(one: Tensor, other: Tensor) -> bool:
    """Whether two results differ by no more than a few roundings of the largest number."""
    tolerance = 4 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


class FusedDropout(nn.Dropout):
    """`nn.Dropout` by `tunesmith.ops.dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def use_fused_dropout(model: PreTrainedModel) -> int:
    """Replace every dropout with the fused one. Returns how many."""
    replaced = 0
    for module in model.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = FusedDropout
            replaced += 1
    return replaced


def use_fused_feed_forwards(model: PreTrainedModel, trial: Trial = nullcontext) -> int:
    """Give every gated feed-forward, down(act(gate(x)) · up(x)), a forward that stores only gate and up.

    A module qualifies if it has three linear layers and an activation and computes this formula. One module of each
    class is tested. The layers stay in place, so that adapters find them. Returns how many.
    """
    parts_of: dict[type[nn.Module], tuple[str, str, str, Activation] | None] = {}
    fused = 0
    for module in model.modules():
        if type(module) not in parts_of:
            parts_of[type(module)] = _gated_parts(module, trial)
        parts = parts_of[type(module)]
        if parts is not None:
            module.forward = _gated_forward(module, *parts)
            fused += 1
    return fused


def _gated_forward(module: nn.Module, gate: str, up: str, down: str, activation: Activation) -> Callable[..., Tensor]:
    def forward(x: Tensor) -> Tensor:
        gate_out, up_out = getattr(module, gate)(x), getattr(module, up)(x)
        last = getattr(module, down)
        parts = _parts(last, x.dtype)
        if parts is None:
            out: Tensor = last(gated(gate_out, up_out, activation))
            return out
        return gated_linear(gate_out, up_out, activation, parts)

    return forward


def _parts(layer: nn.Module, dtype: torch.dtype) -> LinearParts | None:
    """The layer's weights, or None if the layer computes more than they define."""
    if type(layer) is QuantizedLinear:
        return LinearParts(layer.quantized, layer.bias)
    if type(layer) is nn.Linear:
        return LinearParts(layer.weight, layer.bias)
    parts = getattr(layer, "parts", None)  # a fused LoRA layer has them
    return parts(dtype) if callable(parts) else None


@torch.no_grad()
def _gated_parts(module: nn.Module, trial: Trial) -> tuple[str, str, str, Activation] | None:
    """Names of the gate, up and down layers, and the activation; None if the module is not a gated feed-forward."""
    children = dict(module.named_children())
    linears = [name for name, child in children.items() if isinstance(child, nn.Linear)]
    others = [child for child in children.values() if not isinstance(child, nn.Linear)]
    if len(linears) != 3 or len(others) != 1 or any(True for _ in others[0].parameters()):
        return None
    with trial(module) as tried:
        return _tried_parts(tried, linears)


def _tried_parts(module: nn.Module, names: list[str]) -> tuple[str, str, str, Activation] | None:
    """Which of the three linear layers with these names is which, found by trying."""
    linears: dict[str, nn.Linear] = {name: getattr(module, name) for name in names}
    for gate, up, down in permutations(linears):
        inputs, inner = linears[gate].in_features, linears[gate].out_features
        if linears[up].out_features != inner or linears[down].in_features != inner or inputs != linears[up].in_features:
            continue
        weight = linears[gate].weight
        probe = torch.linspace(-2, 3, 2 * inputs, device=weight.device).to(weight.dtype).view(2, -1)
        try:
            own = module(probe)
        except Exception:  # it takes other inputs, so it is not a feed-forward
            return None
        kinds: tuple[Activation, ...] = ("silu", "gelu_tanh")
        for activation in kinds:
            ours = _gated_forward(module, gate, up, down, activation)(probe)
            if isinstance(own, Tensor) and own.shape == ours.shape and equal_within_rounding(own, ours):
                return gate, up, down, activation
    return None


ROTARY = "apply_rotary_pos_emb"
"""The name in transformers' model files of the function that rotates queries and keys."""


def use_fused_rotary(model: PreTrainedModel, trial: Trial = nullcontext) -> bool:
    """Replace the family's rotary embedding with the fused one if both give the same results. Returns whether they do.

    The function belongs to the model's Python module, so every model of the family in this process uses it from then
    on.
    """
    module = sys.modules[type(model).__module__]
    own = getattr(module, ROTARY, None)
    if own is None or hasattr(own, "__wrapped__") or not _same_rotary(own, trial):
        return own is not None and hasattr(own, "__wrapped__")

    @wraps(own)
    def fused(*arguments: Any, **keywords: Any) -> Any:
        if len(arguments) != 4 or keywords or not _fits(arguments[0], arguments[2]):
            return own(*arguments, **keywords)
        query, key, cos, sin = arguments
        return rotary(query, cos, sin), rotary(key, cos, sin)

    setattr(module, ROTARY, fused)
    return True


def _fits(query: Tensor, cos: Tensor) -> bool:
    """Whether the batch has one row and both have the same width and dtype (some families rotate in fp32)."""
    return query.shape[0] == 1 and query.shape[-1] == cos.shape[-1] and query.dtype == cos.dtype


@torch.no_grad()
def _same_rotary(own: Callable[..., Any], trial: Trial) -> bool:
    with trial(nn.Identity()):  # only for inputs with values
        query, key = torch.linspace(-2, 3, 48).view(2, 1, 2, 3, 4)
        cos, sin = torch.linspace(-1, 1, 24).view(2, 1, 3, 4)
        try:
            rotated = own(query, key, cos, sin)
            return all(
                equal_within_rounding(a, rotary_reference(b, cos, sin))
                for a, b in zip(rotated, (query, key), strict=True)
            )
        except (TypeError, RuntimeError, ValueError, IndexError):
            return False
