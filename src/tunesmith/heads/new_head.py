"""A new head with its own weights on a pretrained body: which modules it has, its initial weights, its logits."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tunesmith.config.head import Command, Head
from tunesmith.data.batch import Batch, collate
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.heads.head_file import write_head
from tunesmith.models.attention import first_position, packs
from tunesmith.models.peft_import import import_peft
from tunesmith.models.prompts import plain_model


@dataclass(frozen=True)
class NewHead(Head):
    """A head with one output per label, on a body that lacks it."""

    commands: ClassVar[tuple[Command, ...]] = ("classify",)
    is_new: ClassVar[bool] = True

    auto_class: ClassVar[Any]
    """transformers' auto class of models with this head."""

    missing: ClassVar[str]
    """What to say where a family has no such head."""

    def model_class(self, config: PretrainedConfig) -> Any:
        auto = self.auto_class
        if type(config) not in auto._model_mapping and auto.__name__ not in getattr(config, "auto_map", {}):
            raise UserError(f"base: transformers has no {self.missing.format(family=config.model_type)}")
        return auto

    def is_stored(self, config: PretrainedConfig) -> bool:
        suffix = self.auto_class.__name__.removeprefix("AutoModel")
        return (config.architectures or [""])[0].endswith(suffix) and self.labels == labels_of(config)

    def configure(self, config: PretrainedConfig) -> None:
        config.num_labels = len(self.labels)
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {label: index for index, label in enumerate(self.labels)}

    @torch.no_grad()
    def initialize(self, model: PreTrainedModel, missing: Sequence[str], is_stored: bool, seed: int) -> None:
        """Random weights, also for a pooler that the head reads if the base does not store one. Such a pooler is
        recorded in `model.new_modules`, so that it is trained and saved with the head. Its weights do not depend on the
        seed, so that loading the base again gives the same pooler."""
        pooler = f"{model.base_model_prefix}.pooler"
        new = [pooler] if any(name.startswith(f"{pooler}.") for name in missing) else []
        torch.manual_seed(0)
        _initialize([model.get_submodule(name) for name in new], model)
        torch.manual_seed(seed)
        _initialize([] if is_stored else [model.get_submodule(name) for name in head_names(model)], model)
        model.new_modules = new

    def save(self, directory: Path, model: PreTrainedModel, max_length: int) -> None:
        if isinstance(model, import_peft().PeftModel):  # a model's own config has the labels
            write_head(self, directory)


def labels_of(config: PretrainedConfig) -> tuple[str, ...]:
    """The names of a stored head's outputs, in order."""
    return tuple(str(label) for _, label in sorted((config.id2label or {}).items()))


TASK_TYPES = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
"""PEFT's names of the tasks of models with a new head, by the end of the name that transformers gives their classes."""


def peft_task_type(model: PreTrainedModel) -> str:
    """The task of the model's head, as PEFT names it."""
    for suffix, task in TASK_TYPES.items():
        if type(model).__name__.endswith(suffix):
            return task
    if model.base_model is model and model.get_output_embeddings() is None:  # T5 is its own base_model
        return "FEATURE_EXTRACTION"
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def head_names(model: PreTrainedModel) -> list[str]:
    """Names of a new head's modules, including a newly initialized pooler. Empty for a language model head, and for a
    model without a head."""
    if not type(model).__name__.endswith(tuple(TASK_TYPES)):
        return []
    body = model.base_model
    children = [(name, child) for name, child in model.named_children() if child is not body]
    own = [name for name, child in children if any(True for _ in child.parameters())]
    return [*getattr(model, "new_modules", ()), *own]


def last_linear(model: PreTrainedModel) -> nn.Linear:
    """The new head's last layer, which computes its outputs; within PEFT's wrapper, the trained copy."""
    heads = head_names(plain_model(model))
    inside = (
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(f".{head}." in f".{name}." for head in heads)
    )
    return list(inside)[-1]


def head_parameters(model: PreTrainedModel) -> int:
    """Number of parameters in a new head; 0 if there is none."""
    return sum(parameter.numel() for name in head_names(model) for parameter in model.get_submodule(name).parameters())


def _initialize(modules: Iterable[nn.Module], model: PreTrainedModel) -> None:
    """Normal weights with the family's initializer range, zero biases, and ones for norms."""
    spread = getattr(model.config, "initializer_range", None) or 0.02
    for module in (inner for outer in modules for inner in outer.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif isinstance(module, nn.Linear):
                parameter.normal_(0.0, spread)
            else:
                parameter.fill_(1.0)


def head_logits(plain: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The logits (rows, positions, outputs) that the model's own head computes from hidden states (rows, positions,
    hidden)."""
    with _body_returning(plain, hidden):
        logits: Tensor = plain(input_ids=torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)).logits
    return logits


@torch.no_grad()
def check_logits(
    model: PreTrainedModel, loss_mask: NDArray[np.bool_], logits: Callable[[PreTrainedModel, Batch], Tensor]
) -> None:
    """Compare `logits` with the model's own forward pass on a few tokens.

    Args:
        model: as loaded, with document attention if its family supports it.
        loss_mask: (tokens,) the positions that the head reads.
        logits: our computation: (loss positions, outputs).

    Raises:
        UserError: the family's head reads the body's output in an unknown way.
    """
    ids = np.arange(5, 5 + len(loss_mask)).astype(np.int32) % model.config.get_text_config().vocab_size
    row = (ids, loss_mask, Source("", 1), (0.0,) * int(loss_mask.sum()))
    batch = collate(TokenTable.build([row]), [0], model.device)
    arguments: dict[str, Any] = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None].to(model.device)}
    if packs(model):
        positions = torch.arange(len(ids), device=model.device)[None] + first_position(model)
        arguments |= {"position_ids": positions, "document_lengths": [len(ids)]}
    own = model(**arguments).logits.float()
    if not torch.allclose(logits(model, batch).float(), own, atol=0.05, rtol=0.02):
        raise UserError(
            f"{type(model).__name__}'s head reads its body's output in an unknown way, so its training would be wrong. "
            "This family is not supported with such a head yet."
        )


class _FixedBody(nn.Module):
    """Replaces a body and returns hidden states that were already computed."""

    def __init__(self, hidden: Tensor, body: nn.Module) -> None:
        super().__init__()
        self.hidden = hidden
        self.pooler = getattr(body, "pooler", None)
        self.activation = getattr(body, "pooler_activation", None)  # ALBERT's pooler is a linear layer alone

    def forward(self, *_: object, **__: object) -> BaseModelOutputWithPooling:
        pooled = None
        if self.activation is not None and self.pooler is not None:
            pooled = self.activation(self.pooler(self.hidden[:, 0]))
        elif self.pooler is not None:
            pooled = self.pooler(self.hidden)
        return BaseModelOutputWithPooling(last_hidden_state=self.hidden, pooler_output=pooled)


@contextmanager
def _body_returning(plain: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """In this context, the model's body returns `hidden` (rows, positions, hidden), so forward runs only the head."""
    body = plain.base_model
    setattr(plain, plain.base_model_prefix, _FixedBody(hidden, body))
    try:
        yield
    finally:
        setattr(plain, plain.base_model_prefix, body)
