"""The experts of a mixture as the generation engine runs them on a CPU: packed, and computed for each token in the same
way whatever the other tokens are.

transformers multiplies all tokens of an expert at once, and all tokens with the router's matrix. Libraries add up such
products in an order that depends on the number of rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.jetmoe.modeling_jetmoe import JetMoeParallelExperts

from tunesmith.modules.fused import equal_within_rounding
from tunesmith.modules.rowwise import RowwiseFunctions, row_by_row
from tunesmith.modules.served_linear import can_pack
from tunesmith.ops.gated import Activation, gated
from tunesmith.ops.packed_linear import PackedWeight, pack, packed_linear

TOLERANCE = 1e-2
"""As a fraction of the norm: the family's own result against the served one. In bf16 they differ by less."""


@dataclass(frozen=True, slots=True)
class ExpertLinears:
    """A linear layer of each expert.

    Attributes:
        weights: of each expert, (out, in).
        biases: fp32 (experts, out); None: there are none.
    """

    weights: tuple[PackedWeight, ...]
    biases: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.weights[0].shape

    def of(self, expert: int, x: Tensor) -> Tensor:
        """x Wᵀ + b of an expert: (rows, out) for (rows, in)."""
        return packed_linear(x, self.weights[expert], None if self.biases is None else self.biases[expert])


def expert_matrices(module: nn.Module) -> dict[str, tuple[int, int, int]]:
    """The tensors in which a module holds a matrix for each expert, as transformers' `use_experts_implementation`
    describes them.

    Args:
        module: any.

    Returns:
        (experts, out, in) by name: what comes before the activation, then what comes after it; empty for a module that
        is described otherwise.
    """
    first = "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"
    found = {}
    for name in (first, "down_proj"):
        tensor = getattr(module, name, None)
        if not isinstance(tensor, nn.Parameter) or tensor.ndim != 3 or not hasattr(module, "is_transposed"):
            return {}
        experts, *sizes = tensor.shape
        outputs, inputs = reversed(sizes) if module.is_transposed else sizes
        found[name] = (experts, outputs, inputs)
    return found


class ServedExperts(nn.Module):
    """In place of a module that holds its experts' matrices in tensors of three dimensions.

    Args:
        experts: which it replaces; `drop_weights` frees its matrices.
    """

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.experts = experts
        names = tuple(expert_matrices(experts))
        self.first, self.last = (_packed(experts, name) for name in names)
        self._names = names
        self._activation = _fused_activation(experts, self.first.shape[0])

    def drop_weights(self) -> None:
        """Free the matrices as they were."""
        for name in self._names:
            delattr(self.experts, name)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """What each token's experts compute, added up in the order in which the router names them.

        Args:
            hidden_states: (tokens, hidden).
            top_k_index: (tokens, chosen), the experts of each token; numbers past the last expert compute nothing.
            top_k_weights: (tokens, chosen).

        Returns:
            (tokens, hidden).
        """
        tokens, chosen = top_k_index.shape
        each = hidden_states.new_zeros(tokens * chosen, self.last.shape[0])
        for expert, places in _places(top_k_index, len(self.first.weights)):
            each[places] = self.last.of(expert, self._activated(self.first.of(expert, hidden_states[places // chosen])))
        if getattr(self.experts, "has_post_expert_norm", False):
            each = self.experts.post_expert_norm(each)
        weighted = (each.view(tokens, chosen, -1) * top_k_weights[..., None]).float()
        total = weighted[:, 0]
        for place in range(1, chosen):
            total = total + weighted[:, place]
        return total.to(hidden_states.dtype)

    def _activated(self, inner: Tensor) -> Tensor:
        """What comes between the two linear layers."""
        if self._activation is not None:
            gate, up = inner.chunk(2, -1)
            return gated(gate, up, self._activation)
        with RowwiseFunctions():
            return _own_activation(self.experts)(inner)


class ServedSortedExperts(nn.Module):
    """In place of JetMoE's `JetMoeParallelExperts`: a linear layer of each expert, for tokens sorted by expert.

    Args:
        experts: which it replaces; its `weight` is (experts, out, in).
    """

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.linears = ExpertLinears(tuple(pack(matrix) for matrix in experts.weight.detach()), None)

    def forward(self, inputs: Tensor, expert_size: list[int]) -> Tensor:
        """What each token's expert computes.

        Args:
            inputs: (rows, in), those of the first expert first.
            expert_size: how many rows each expert has.

        Returns:
            (rows, out).
        """
        found = inputs.new_empty(len(inputs), self.linears.shape[0])
        parts = zip(torch.split(inputs, expert_size), torch.split(found, expert_size), strict=True)
        for expert, (own, result) in enumerate(parts):
            if len(own):
                result.copy_(self.linears.of(expert, own))
        return found


def _packed(experts: Any, name: str) -> ExpertLinears:
    matrices = getattr(experts, name).detach()
    weights = tuple(pack(matrix.T if experts.is_transposed else matrix) for matrix in matrices)
    return ExpertLinears(weights, getattr(experts, f"{name}_bias").detach().float() if experts.has_bias else None)


def _own_activation(experts: Any) -> Callable[[Tensor], Tensor]:
    own: Callable[[Tensor], Tensor] = experts._apply_gate if experts.has_gate else experts.act_fn
    return own


def _fused_activation(experts: Any, width: int) -> Activation | None:
    """The activation of `ops.gated` that computes the same; None if none does."""
    probe = torch.linspace(-2, 3, 2 * width, dtype=next(experts.parameters()).dtype).view(2, -1)
    own = _own_activation(experts)(probe)
    kinds: tuple[Activation, ...] = ("silu", "gelu_tanh")
    for kind in kinds if experts.has_gate else ():
        gate, up = probe.chunk(2, -1)
        if equal_within_rounding(own, gated(gate, up, kind)):
            return kind
    return None


def _places(top_k_index: Tensor, experts: int) -> Iterator[tuple[int, Tensor]]:
    """Each chosen expert, with its places in the flattened (tokens, chosen) tensor in ascending order."""
    ordered, places = top_k_index.flatten().sort(stable=True)
    counts = torch.bincount(ordered)[:experts].tolist()
    for expert, own in enumerate(torch.split(places[: sum(counts)], counts)):
        if len(own):
            yield expert, own


@torch.no_grad()
def serve_experts(model: PreTrainedModel) -> int:
    """Replace the experts of the model, and compute their routers row by row, in place; the experts' weights are then
    in memory only as packed. PEFT's products on experts are merged first. Call before the linear layers are replaced.

    Args:
        model: on a CPU, or nothing is replaced.

    Returns:
        How many layers with experts were replaced.
    """
    if not can_pack(model.dtype, model.device):
        return 0
    _merge_products(model)
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, JetMoeParallelExperts):
                setattr(parent, name, ServedSortedExperts(child))
                replaced += 1
                continue
            served = _served(child) if expert_matrices(child) else None
            if served is not None:
                served.drop_weights()
                setattr(parent, name, served)
                _serve_routers(parent, len(served.first.weights), served.first.shape[1])
                replaced += 1
    return replaced


def _merge_products(model: PreTrainedModel) -> None:
    """Merge PEFT's low-rank products on tensors into them. They would be computed again for every step."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            while hasattr(child, "parameter_name") and hasattr(child, "merge"):  # PEFT's ParamWrapper; they are nested
                child.merge()
                child = child.base_layer
                setattr(parent, name, child)


def _served(experts: Any) -> ServedExperts | None:
    """The experts, packed; None if that computes something else than the family's own code."""
    hidden = expert_matrices(experts)["down_proj"][1]
    dtype = next(experts.parameters()).dtype
    probe = torch.linspace(-1, 1, 2 * hidden).view(2, hidden).to(dtype)
    index, weights = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.6, 0.4], [0.7, 0.3]], dtype=dtype)
    try:
        served = ServedExperts(experts)
        own, ours = experts(probe, index, weights).float(), served(probe, index, weights).float()
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None
    return served if torch.linalg.vector_norm(ours - own) <= TOLERANCE * torch.linalg.vector_norm(own) else None


def _serve_routers(parent: nn.Module, experts: int, hidden: int) -> None:
    """Compute each child that has a matrix (experts, hidden) row by row."""
    for child in parent.children():
        is_router = any(each.shape == (experts, hidden) for each in child.parameters())
        if is_router and not isinstance(child, ServedExperts):
            child.forward = row_by_row(child.forward)
