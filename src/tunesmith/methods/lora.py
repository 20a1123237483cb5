"""LoRA (Hu et al. 2021): each chosen weight W gets a trained low-rank update, W + (alpha / rank) · B A.

Trains  Σ rank × (in + out)  parameters over the chosen linear layers (DoRA: + out for each). B starts at zero, so the
model starts as the base.
Choose it by default: on instruction data it is close to full fine-tuning in quality at a third of the memory (section
4.2 there), and many adapters can share one base. A low rank has less capacity for much new knowledge.
With a base in nf4, this is QLoRA (Dettmers et al. 2023).
"""

import re
from typing import ClassVar, Literal

import torch
from peft import LoraConfig, PeftModel
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from tunesmith.config.method import MethodConfig
from tunesmith.errors import UserError
from tunesmith.methods.wrapping import by_size, wrap_with_peft
from tunesmith.models.architecture import (
    Linear,
    block_layers,
    block_names,
    linears,
    linears_in_blocks,
    short_names,
    stacks,
)
from tunesmith.models.forward import run_probe
from tunesmith.models.load import stored_weight
from tunesmith.modules.fused_lora import FusedLoraLinear, SharedInput
from tunesmith.modules.quantized_linear import QuantizedLinear


class LoRA(MethodConfig):
    """W + (alpha / rank) · B A for each chosen linear layer (Hu et al. 2021): the default for instruction data."""

    kind: Literal["lora"] = "lora"

    rank: int = Field(default=16, ge=1)
    """Columns of B and rows of A. 16: on a few thousand rows, more rarely helps."""

    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank. Twice the rank is common practice, and the default learning rates assume
    it."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the update's inputs that are zeroed in training. 0: early stopping prevents overfitting on small data
    at no cost."""

    target_modules: str | list[str] = "all-linear"
    """`all-linear` (all in the blocks, not the head), `attention`, `feed-forward`, a regular expression that matches
    full names, or a list of name suffixes: `[q_proj, v_proj]`. `all-linear`: attention alone is measurably worse at the
    same size (Dettmers et al. 2023, section 4)."""

    last: int | None = Field(default=None, ge=1)
    """Adapt only this many of the top blocks; default: all. The blocks below them need no backward pass: with 12 of 30
    blocks a step takes two thirds of the time. Enough where the base knows the content and learns a form."""

    experts: bool = False
    """Also train experts, whose weights are three-dimensional tensors and not layers. Each pass then computes the full
    matrices W + (alpha / rank) · B A, which takes time and memory for all experts. Off: attention and the layers that
    all tokens pass through are usually enough, at little cost."""

    rank_stabilized: bool = False
    """Scale by alpha / √rank instead (Kalajdzievski 2023), for ranks of 64 or more."""

    dora: bool = False
    """Train each output's magnitude separately from its direction (Liu et al. 2024): closer to full fine-tuning at low
    ranks, but takes a third more time."""

    initialization: Literal["zero", "gaussian", "orthogonal", "pissa", "loftq"] = "zero"
    """How A and B start. `zero`: A uniform (Kaiming), B zero. `gaussian`: A normal, B zero. `orthogonal`: both from one
    orthogonal matrix, and the base is corrected. `pissa`: W's largest singular vectors, and the base keeps the rest
    (Meng et al. 2024). `loftq`: the quantization error of W, for a quantized base (Li et al. 2023)."""

    b_learning_rate_ratio: float = Field(default=1.0, gt=0)
    """B's learning rate divided by A's. 16: LoRA+ (Hayou et al. 2024). 1: plain LoRA."""

    ranks: dict[str, int] = Field(default={})
    """Other ranks for layers whose names end with a match of a regular expression: `{down_proj: 64}`. alpha / rank does
    not change."""

    formula: ClassVar[str] = "W + (alpha / rank) · B A"
    choose: ClassVar[str] = "The default. Less capacity than full fine-tuning for much new knowledge."
    is_mergeable: ClassVar[bool] = True
    usual_weights: ClassVar[tuple[str, ...]] = ("auto", "int8", "nf4")
    classification_rate_factor: ClassVar[float] = 0.3

    @property
    def top_blocks(self) -> int:
        return self.last or 0

    def with_top_blocks(self, count: int) -> "LoRA":
        return self.model_copy(update={"last": count})

    @property
    def trains_base(self) -> bool:
        """PiSSA and orthogonal initialization subtract the initial B A from the base's matrices."""
        return self.initialization in ("pissa", "orthogonal")

    @property
    def is_resumable(self) -> bool:
        return self.initialization in ("zero", "gaussian")

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        """Wrap the model with PEFT, with the fused layer registered through PEFT's hook for custom modules.

        Raises:
            UserError: no layer's name matches `target_modules` or `ranks`, LoftQ is set for a base that is not
                quantized, or `experts` for a base without experts or together with unsupported fields.
        """
        chosen = self._chosen(model)
        self._check_experts(model)
        ranks = self._ranks(chosen)
        quantized = any(isinstance(module, QuantizedLinear) for module in model.modules())
        if self.initialization == "loftq" and not quantized:
            raise UserError(
                "method.initialization: loftq corrects quantization error, and this base is not quantized. "
                "Set base.weights: nf4, or initialization: zero."
            )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=short_names(model, chosen),
            target_parameters=sorted(_experts(model)) if self.experts else None,
            use_rslora=self.rank_stabilized,
            use_dora=self.dora,
            init_lora_weights=True if self.initialization in ("zero", "loftq") else self.initialization,
            rank_pattern=dict(ranks),  # PEFT writes into it
            alpha_pattern={name: self.alpha * rank / self.rank for name, rank in ranks.items()},
            bias="none",
        )
        config._register_custom_module({nn.Linear: FusedLoraLinear})
        groups = _same_input_layers(model)
        peft_model = wrap_with_peft(model, config, seed)
        _share_inputs(peft_model.get_base_model(), groups)
        return peft_model

    def initialize(self, model: PeftModel) -> None:
        if self.initialization == "loftq":
            _initialize_loftq(model)

    def learning_rate(self, parameters: int) -> float:
        """Ten times full fine-tuning's ("LoRA without regret", Schulman et al. 2025)."""
        return by_size(parameters, small=5e-3, large=2e-4)

    def learning_rate_factor(self, parameter: str) -> float:
        return self.b_learning_rate_ratio if ".lora_B." in parameter else 1.0

    def trained_parameters(self, model: PreTrainedModel) -> int:
        chosen = self._chosen(model)
        ranks = self._ranks(chosen)
        experts = _experts(model).values() if self.experts else ()
        return sum(self.rank * count * (outputs + inputs) for count, outputs, inputs in experts) + sum(
            next((rank for name, rank in ranks.items() if _ends(name, layer.name)), self.rank)
            * (layer.inputs + layer.outputs)
            + (layer.outputs if self.dora else 0)
            for layer in chosen
        )

    def _check_experts(self, model: PreTrainedModel) -> None:
        if not self.experts:
            return
        if not _experts(model):
            raise UserError(
                f"method.experts: {type(model).__name__} has no expert weight tensors. Remove method.experts."
            )
        if self.dropout or self.dora or self.initialization != "zero" or self.last:
            raise UserError(
                "method.experts: W + B A is computed as one matrix in every block, without dropout, dora, last or a "
                "special initialization."
            )

    def _chosen(self, model: PreTrainedModel) -> list[Linear]:
        """The layers that get an adapter, in the model's order."""
        chosen = self._targets(model)
        if self.last is None:
            return chosen
        names = block_names(model)
        if self.last > len(names):
            raise UserError(f"method.last: {self.last} blocks to adapt, but {type(model).__name__} has {len(names)}.")
        top = tuple(f"{name}." for name in names[-self.last :])
        within = [layer for layer in chosen if layer.name.startswith(top)]
        if not within:
            raise UserError(
                f"method.last: {self.last}: none of the layers that method.target_modules names is in the top blocks."
            )
        return within

    def _targets(self, model: PreTrainedModel) -> list[Linear]:
        """The layers that `target_modules` names."""
        if self.target_modules == "all-linear":
            return linears_in_blocks(model)
        if self.target_modules == "attention":
            return [layer for block in block_layers(model) for layer in block.attention]
        if self.target_modules == "feed-forward":
            return [layer for block in block_layers(model) for layer in block.feed_forward]
        layers = list(linears(model))
        if isinstance(self.target_modules, str):
            pattern = self.target_modules
            matched = [layer for layer in layers if re.fullmatch(pattern, layer.name)]
            if not matched:
                raise _no_such_layer(model, "full name that matches", pattern)
            return matched
        for target in self.target_modules:
            if not any(_ends(re.escape(target), layer.name) for layer in layers):
                raise _no_such_layer(model, "name that ends in", target)
        return [
            layer for layer in layers if any(_ends(re.escape(target), layer.name) for target in self.target_modules)
        ]

    def _ranks(self, chosen: list[Linear]) -> dict[str, int]:
        for name in self.ranks:
            if not any(_ends(name, layer.name) for layer in chosen):
                raise UserError(
                    f"method.ranks: {name!r} matches no chosen layer's name. One of them: {chosen[0].name}."
                )
        return self.ranks


def _experts(model: PreTrainedModel) -> dict[str, tuple[int, int, int]]:
    """Names of the blocks' three-dimensional tensors, which hold a matrix for each expert, with their shapes."""
    return {
        f"{name}.{parameter}": (tensor.shape[0], tensor.shape[1], tensor.shape[2])
        for name, module in model.named_modules()
        if not type(module).__module__.startswith("torch.nn")  # convolutions also have three dimensions
        for parameter, tensor in module.named_parameters(recurse=False)
        if tensor.ndim == 3 and any(name.startswith(f"{stack}.") for stack, _ in stacks(model))
    }


def _ends(pattern: str, name: str) -> bool:
    return re.search(rf"(^|\.)({pattern})$", name) is not None


def _no_such_layer(model: PreTrainedModel, what: str, target: str) -> UserError:
    names = sorted({layer.name.split(".")[-1] for layer in linears_in_blocks(model)})
    return UserError(
        f"method.target_modules: no linear layer of {type(model).__name__} has a {what} {target!r}. Its linear layers: "
        f"{', '.join(names)}."
    )


def _same_input_layers(model: PreTrainedModel) -> list[list[str]]:
    """Groups of names of linear layers that read the same tensor: a block's attention layers except the output
    projection, and its feed-forward's input layers. Call it before adding adapters."""
    try:
        parts = block_layers(model)
    except UserError:  # the parts of a block cannot be identified
        return []
    attention = [[layer.name for layer in block.attention if layer is not block.attention_out] for block in parts]
    return attention + [[layer.name for layer in block.feed_forward_in] for block in parts]


def _share_inputs(model: PreTrainedModel, groups: list[list[str]]) -> None:
    """Let LoRA layers that read the same tensor compute their outputs together."""
    for names in groups:
        layers = [model.get_submodule(name) for name in names]
        fused = [layer for layer in layers if isinstance(layer, FusedLoraLinear)]
        for size in {layer.in_features for layer in fused}:
            same_size = [layer for layer in fused if layer.in_features == size]
            shared = SharedInput(same_size)
            for layer in same_size if len(same_size) > 1 else []:
                layer.shared = shared
    for _ in range(2):  # layers that read different tensors are detected now, not in the first step
        run_probe(model)


@torch.no_grad()
def _initialize_loftq(model: PeftModel) -> None:
    """B A · scaling ← the best rank-r approximation of W − Q(W) (LoftQ's algorithm 1, one step, with Q unchanged)."""
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, FusedLoraLinear) or not isinstance(layer.get_base_layer(), QuantizedLinear):
            continue
        base = layer.get_base_layer()
        adapter = layer.active_adapters[0]
        weight = stored_weight(model.get_base_model(), f"{name}.weight").to(base.quantized.codes.device).float()
        if base.is_transposed:
            weight = weight.T  # GPT-2 stores (in, out), which the shape of a square matrix does not show
        rank = layer.r[adapter]
        u, s, v = torch.svd_lowrank(weight - base.weight.float(), q=min(rank + 8, *weight.shape), niter=4)
        root = (s[:rank] / layer.scaling[adapter]).sqrt()
        count = len(root)  # if the rank exceeds the matrix's, the rest of B stays at zero
        layer.lora_B[adapter].weight.data[:, :count] = u[:, :rank] * root
        layer.lora_A[adapter].weight.data[:count] = (v[:, :rank] * root).T
