"""Some of the base's own weights are trained and the rest are frozen: top blocks, chosen names, norms and biases, the
head.

Trains the P' chosen parameters. `last: N` with few rows is the classic transfer learning (Yosinski et al. 2014: lower
layers are more general). `last: 0` on a classifier is feature extraction, a new head on a frozen body (Donahue et al.
2014), whose features are computed once. Norms and biases alone are BitFit (Ben Zaken et al. 2022).
Choose it if an adapter cannot be served, or for a classifier on few rows. Layers below the lowest trained one need no
backward pass, but they cannot adapt to the task either.
"""

import re
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from tunesmith.config.method import MethodConfig
from tunesmith.errors import UserError
from tunesmith.heads.new_head import head_names
from tunesmith.methods.wrapping import by_size, frozen
from tunesmith.models.architecture import blocks, stacks


class Layers(MethodConfig):
    """Trains chosen weights of the base: the top blocks, names by pattern, norms and biases, embeddings, the head."""

    kind: Literal["layers"] = "layers"

    last: int = Field(default=0, ge=0)
    """How many of the top blocks are trained, together with the layers after them except the head. 0: none."""

    patterns: list[str] = Field(default=[])
    """Regular expressions. A parameter is trained if one matches anywhere in its name: `['layers\\.(0|1)\\.mlp']`."""

    norms_and_biases: bool = False
    """Train every norm's weight and bias, and every other bias (BitFit)."""

    embeddings: bool = False
    """Train the token embeddings, and the head if it is tied to them."""

    head: bool = False
    """Train the language model head, and the embeddings if they are tied to it. A new classification head is always
    trained."""

    formula: ClassVar[str] = "W ← W − ΔW for the chosen weights, the rest frozen"
    choose: ClassVar[str] = "A classifier on few rows, or if adapters cannot be served. Lower layers stay as they are."
    adds_weights: ClassVar[bool] = False
    classification_rate_factor: ClassVar[float] = 0.3

    @model_validator(mode="after")
    def _known(self) -> "Layers":
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"patterns: {pattern!r} is not a regular expression ({error})") from None
        return self

    @property
    def top_blocks(self) -> int:
        return self.last

    def with_top_blocks(self, count: int) -> "Layers":
        return self.model_copy(update={"last": count})

    @property
    def is_resumable(self) -> bool:
        return False

    @property
    def trains_base(self) -> bool:
        return bool(self.last or self.patterns or self.embeddings)

    def apply(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        """Raises:
        UserError: a pattern matches no parameter, there are fewer blocks than `last`, or nothing would be trained.
        """
        chosen = self._chosen(model)
        frozen(model)
        for _, parameter in chosen:
            parameter.requires_grad_(True)
        for parameter in _new_head(model):
            parameter.requires_grad_(True)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(
                "method: {kind: layers} selects no weight to train. Set last: 2, patterns, norms_and_biases, "
                "embeddings or head."
            )
        return model

    def learning_rate(self, parameters: int) -> float:
        if self.trains_base:
            return by_size(parameters, small=3e-3, large=5e-5)
        return by_size(parameters, small=4e-2, large=1e-3)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        head = {id(parameter) for parameter in _new_head(model)}
        return sum(parameter.numel() for _, parameter in self._chosen(model) if id(parameter) not in head)

    def _chosen(self, model: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
        named = list(model.named_parameters())
        chosen = {id(parameter) for part in self._parts(model) for parameter in part.parameters()}
        for pattern in self.patterns:
            matched = {id(parameter) for name, parameter in named if re.search(pattern, name)}
            if not matched:
                raise UserError(
                    f"method.patterns: {pattern!r} matches no parameter name of {type(model).__name__}. One of its "
                    f"names: {named[len(named) // 2][0]}."
                )
            chosen |= matched
        if self.norms_and_biases:
            chosen |= {id(parameter) for _, parameter in named if parameter.ndim == 1}
        return [(name, parameter) for name, parameter in named if id(parameter) in chosen]

    def _parts(self, model: PreTrainedModel) -> list[nn.Module]:
        parts: list[nn.Module] = []
        if self.last:
            all_blocks = blocks(model)
            if self.last > len(all_blocks):
                raise UserError(
                    f"method.last: {self.last} blocks to train, but {type(model).__name__} has {len(all_blocks)}."
                )
            parts += [*all_blocks[-self.last :], *_after(model, stacks(model)[-1][1])]
        if self.embeddings:
            parts.append(model.get_input_embeddings())
        if self.head and model.get_output_embeddings() is not None:
            parts.append(model.get_output_embeddings())
        return parts


def _after(model: PreTrainedModel, stack: nn.ModuleList) -> list[nn.Module]:
    """The body's modules after the stack of blocks: a final norm, a pooler."""
    for owner in model.modules():
        children = list(owner.children())
        if any(child is stack for child in children):
            index = next(index for index, child in enumerate(children) if child is stack)
            after = [child for child in children[index + 1 :] if not isinstance(child, nn.ModuleList)]
            return [*after, *([model.base_model.pooler] if getattr(model.base_model, "pooler", None) else [])]
    return []


def _new_head(model: PreTrainedModel) -> list[nn.Parameter]:
    return [parameter for name in head_names(model) for parameter in model.get_submodule(name).parameters()]
