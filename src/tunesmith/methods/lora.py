"""LoRA (Hu et al. 2021): each chosen weight W gets a trained addition of low rank, W + (alpha / rank) · B A.

Trains  Σ rank × (in + out)  numbers over the chosen linear layers (DoRA: + out each); B starts at zero, so the model
starts as the base.
Choose it unless there is a reason not to: near full fine-tuning's quality on data of instruction size at a third of
its memory (section 4.2 there), and many adapters can share one base. A low rank has less room for much new knowledge.
On a base in nf4 this is QLoRA (Dettmers et al. 2023).
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import Linear as PeftLoraLinear
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.config.registry import MethodConfig
from tunesmith.errors import UserError
from tunesmith.methods.wrapping import by_size, wrap_with_peft
from tunesmith.models.architecture import Linear, block_layers, linears, linears_in_blocks, short_names, stacks
from tunesmith.models.fake_tensors import is_fake
from tunesmith.models.forward import rehearse
from tunesmith.models.load import stored_weight
from tunesmith.models.quantize import QuantizedLinear
from tunesmith.ops.lora_linear import LinearParts, lora_linears


class LoRA(MethodConfig):
    """W + (alpha / rank) · B A for each chosen linear layer (Hu et al. 2021): the default for instructions."""

    kind: Literal["lora"] = "lora"

    rank: int = Field(default=16, ge=1)
    """Columns of B and rows of A. 16: on data of a few thousand rows more seldom helps."""

    alpha: float = Field(default=32.0, gt=0)
    """The addition is scaled by alpha / rank. Twice the rank: the field's habit, and what learning rates assume."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the addition's inputs that are zeroed in training. 0: early stopping guards small data at no cost."""

    target_modules: str | list[str] = "all-linear"
    """`all-linear` (all in the blocks, not the head), `attention`, `feed-forward`, a regular expression for whole
    names, or endings of names: `[q_proj, v_proj]`. All: attention alone is measurably worse at the same size
    (Dettmers et al. 2023, section 4)."""

    experts: bool = False
    """Also adapt experts, whose weights are tensors of three dimensions and no layers. Each pass then forms their whole
    sum W + (alpha / rank) · B A, in time and memory that go with all experts. Off: attention, and what all tokens pass,
    is mostly enough, and costs little."""

    rank_stabilized: bool = False
    """Scale by alpha / √rank instead (Kalajdzievski 2023), for ranks of 64 and more."""

    dora: bool = False
    """Learn each output's magnitude apart from its direction (Liu et al. 2024): closer to full fine-tuning at low
    ranks, at a third more time."""

    initialization: Literal["zero", "gaussian", "orthogonal", "pissa", "loftq"] = "zero"
    """Where A and B start. `zero`: A uniform (Kaiming), B zero. `gaussian`: A normal, B zero. `orthogonal`: both from
    one orthogonal matrix, the base corrected. `pissa`: W's largest singular vectors, the base keeping the rest (Meng
    et al. 2024). `loftq`: what quantization took from W, for a quantized base (Li et al. 2023)."""

    b_learning_rate_ratio: float = Field(default=1.0, gt=0)
    """B's learning rate over A's. LoRA+ (Hayou et al. 2024) takes 16; 1: plain LoRA."""

    ranks: dict[str, int] = Field(default={})
    """Other ranks for layers whose names a regular expression ends: `{down_proj: 64}`; alpha / rank stays as it is."""

    formula: ClassVar[str] = "W + (alpha / rank) · B A"
    choose: ClassVar[str] = "The default. Less room than full fine-tuning for much new knowledge."
    share_for_classes: ClassVar[float] = 0.3

    @property
    def trains_base(self) -> bool:
        """PiSSA and orthogonal starts take out of the base's matrices what they put into A and B."""
        return self.initialization in ("pissa", "orthogonal")

    @property
    def is_resumable(self) -> bool:
        return self.initialization in ("zero", "gaussian")

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        """Wrap the model by PEFT, with the fused layer registered through PEFT's hook for custom modules.

        Raises:
            UserError: no module's name fits `target_modules` or `ranks`, LoftQ is asked of a base that is whole, or
                `experts` of one that has none, or beside what they cannot have.
        """
        chosen = self._chosen(model)
        self._check_experts(model)
        ranks = self._ranks(chosen)
        quantized = any(isinstance(module, QuantizedLinear) for module in model.modules())
        if self.initialization == "loftq" and not quantized:
            raise UserError(
                "method.initialization: loftq makes up for quantization. Set base.weights: nf4, or zero here."
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
        together = _read_together(model)
        peft_model = wrap_with_peft(model, config, seed)
        _share_inputs(peft_model.get_base_model(), together)
        if self.initialization == "loftq" and not is_fake(model):
            _make_up_for_quantization(peft_model)
        return peft_model

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
            raise UserError(f"method.experts: {type(model).__name__} has no experts in tensors. Leave it out.")
        if self.dropout or self.dora or self.initialization != "zero":
            raise UserError(
                "method.experts: W + B A is formed whole, with no dropout, dora or initialization of its own."
            )

    def _chosen(self, model: PreTrainedModel) -> list[Linear]:
        if self.target_modules == "all-linear":
            return linears_in_blocks(model)
        if self.target_modules == "attention":
            return [layer for block in block_layers(model) for layer in block.attention]
        if self.target_modules == "feed-forward":
            return [layer for block in block_layers(model) for layer in block.feed_forward]
        layers = list(linears(model))
        if isinstance(self.target_modules, str):
            pattern = self.target_modules
            found = [layer for layer in layers if re.fullmatch(pattern, layer.name)]
            if not found:
                raise _no_such_module(model, f"no linear layer of {type(model).__name__} is fully matched by", pattern)
            return found
        for target in self.target_modules:
            if not any(_ends(re.escape(target), layer.name) for layer in layers):
                raise _no_such_module(model, f"no module of {type(model).__name__} ends in", target)
        return [
            layer for layer in layers if any(_ends(re.escape(target), layer.name) for target in self.target_modules)
        ]

    def _ranks(self, chosen: list[Linear]) -> dict[str, int]:
        for name in self.ranks:
            if not any(_ends(name, layer.name) for layer in chosen):
                raise UserError(f"method.ranks: {name!r} ends no chosen layer's name; such as {chosen[0].name}.")
        return self.ranks


def _experts(model: PreTrainedModel) -> dict[str, tuple[int, int, int]]:
    """Endings of the names of the blocks' tensors of three dimensions, one for each of many experts: their shapes."""
    return {
        f"{name}.{parameter}": (tensor.shape[0], tensor.shape[1], tensor.shape[2])
        for name, module in model.named_modules()
        if not type(module).__module__.startswith("torch.nn")  # convolutions have three dimensions too
        for parameter, tensor in module.named_parameters(recurse=False)
        if tensor.ndim == 3 and any(name.startswith(f"{stack}.") for stack, _ in stacks(model))
    }


def _ends(pattern: str, name: str) -> bool:
    return re.search(rf"(^|\.)({pattern})$", name) is not None


def _no_such_module(model: PreTrainedModel, what: str, target: str) -> UserError:
    inside = sorted({layer.name.split(".")[-1] for layer in linears_in_blocks(model)})
    return UserError(f"method.target_modules: {what} {target!r}. Its linear layers: {', '.join(inside)}.")


def _read_together(model: PreTrainedModel) -> list[list[str]]:
    """Names of the linear layers that read one tensor: those of a block's attention but its last, and those that its
    feed-forward begins with. Before adapters are put on."""
    try:
        found = block_layers(model)
    except UserError:  # parts that cannot be told apart
        return []
    inward = [[each.name for each in block.attention if each is not block.attention_out] for block in found]
    return inward + [[each.name for each in block.feed_forward_in] for block in found]


def _share_inputs(model: PreTrainedModel, together: list[list[str]]) -> None:
    """Let adapted layers that read one tensor compute together."""
    for names in together:
        layers = [model.get_submodule(name) for name in names]
        fused = [each for each in layers if isinstance(each, FusedLoraLinear)]
        for size in {each.in_features for each in fused}:
            bucket_by_length = [each for each in fused if each.in_features == size]
            shared = SharedInput(bucket_by_length)
            for each in bucket_by_length if len(bucket_by_length) > 1 else []:
                each.shared = shared
    for _ in range(2):  # what is read apart is seen now, not in the first step
        rehearse(model)


@torch.no_grad()
def _make_up_for_quantization(model: PeftModel) -> None:
    """B A · scaling ← the part of rank r of W − Q(W) that is largest (LoftQ's algorithm 1, one step: Q stays)."""
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, FusedLoraLinear) or not isinstance(layer.get_base_layer(), QuantizedLinear):
            continue
        base = layer.get_base_layer()
        adapter = layer.active_adapters[0]
        whole = stored_weight(model.get_base_model(), f"{name}.weight").to(base.quantized.codes.device).float()
        if base.turned:
            whole = whole.T  # GPT-2 stores (in, out), which a square matrix's shape does not show
        rank = layer.r[adapter]
        u, s, v = torch.svd_lowrank(whole - base.weight.float(), q=min(rank + 8, *whole.shape), niter=4)
        root = (s[:rank] / layer.scaling[adapter]).sqrt()
        found = len(root)  # a rank beyond the matrix's own leaves the rest of B at zero
        layer.lora_B[adapter].weight.data[:, :found] = u[:, :rank] * root
        layer.lora_A[adapter].weight.data[:found] = (v[:, :rank] * root).T


class SharedInput:
    """Layers that read the same tensor one after another (queries, keys and values; gate and up): all are computed when
    the first is asked, and the others find theirs made.

    Whether they do is seen, not known: should one be asked for another tensor meanwhile, each goes alone from then on.
    """

    def __init__(self, layers: Sequence["FusedLoraLinear"]) -> None:
        self._layers = list(layers)
        self._x: Tensor | None = None
        self._made: dict[FusedLoraLinear, Tensor] = {}

    def of(self, layer: "FusedLoraLinear", x: Tensor) -> Tensor | None:
        """The layer's value at x; None where it has to make it itself."""
        if self._made and (self._x is not x or layer not in self._made):
            self._layers, self._x, self._made = [], None, {}
        if not self._made and self._layers:
            parts = [each.parts(x.dtype) for each in self._layers]
            if None in parts:
                return None
            made = lora_linears(x, [each for each in parts if each])
            self._x, self._made = x, dict(zip(self._layers, made, strict=True))
        found = self._made.pop(layer, None)
        if not self._made:
            self._x = None
        return found

    def forget(self) -> None:
        """The pass was broken off: what it made and nobody has asked for would keep all of its activations."""
        self._x, self._made = None, {}


class FusedLoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer, whose plain case (one adapter, no dropout, no variant) runs through `lora_linear`."""

    shared: SharedInput | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = None if args or kwargs else self.parts(x.dtype)
        if layer is None:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        found = self.shared.of(self, x) if self.shared is not None else None
        return lora_linears(x, [layer])[0] if found is None else found

    def forget_pass(self) -> None:
        """After a pass that was broken off."""
        if self.shared is not None:
            self.shared.forget()

    def parts(self, dtype: torch.dtype) -> LinearParts | None:
        """The numbers of the plain case on inputs of that precision; None where there is more to it."""
        if not self._is_plain(dtype):
            return None
        name = self.active_adapters[0]
        base = self.get_base_layer()
        weight = base.quantized if isinstance(base, QuantizedLinear) else base.weight
        return LinearParts(weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])

    def _is_plain(self, dtype: torch.dtype) -> bool:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_A[name].weight.dtype != dtype:
            return False
        dropout = self.lora_dropout[name]
        return isinstance(dropout, nn.Identity) or not self.training or dropout.p == 0
