"""Heads other than a language model's: sequence classification, token classification, and pooled vectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tunesmith.data.example import Source
from tunesmith.data.pack import Batch, collate, pack_any_order
from tunesmith.data.tokens import TokenTable
from tunesmith.ending import Ending
from tunesmith.errors import UserError
from tunesmith.models.attention import first_position, packs
from tunesmith.models.forward import first_hidden_states, loss_hidden_states, pooled
from tunesmith.models.prompts import plain_model


def head_names(model: PreTrainedModel) -> list[str]:
    """Names of a new head's modules, including a newly initialized pooler (`models.new_head`). Empty for a language
    model head, and for a model without a head."""
    if task_type(model) not in ("SEQ_CLS", "TOKEN_CLS"):
        return []
    body = model.base_model
    children = [(name, child) for name, child in model.named_children() if child is not body]
    own = [name for name, child in children if any(True for _ in child.parameters())]
    return [*getattr(model, "new_modules", ()), *own]


def task_type(model: PreTrainedModel) -> str:
    """The model's task type by its head, as PEFT names it."""
    name = type(model).__name__
    for suffix, task in (("ForSequenceClassification", "SEQ_CLS"), ("ForTokenClassification", "TOKEN_CLS")):
        if name.endswith(suffix):
            return task
    if model.base_model is model and model.get_output_embeddings() is None:  # T5 is its own base_model
        return "FEATURE_EXTRACTION"
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


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


def class_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The logits of each document (documents, classes), computed by the family's own head.

    Decoders' heads (transformers' `score`) read the last token. Encoders' heads differ, but all read the first.
    """
    plain = plain_model(model)
    hidden = (
        torch.as_tensor(batch.features).to(plain.dtype) if batch.features is not None else _head_input(model, batch)
    )
    if hasattr(plain, "score"):
        logits: Tensor = plain.score(hidden)
        return logits
    return _head_on(plain, hidden[:, None])


def tag_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The logits at each marked word (words, tags), computed by the family's own head."""
    hidden, _ = loss_hidden_states(model, batch)
    return _head_on(plain_model(model), hidden[None])[0]


def vectors(model: PreTrainedModel, batch: Batch, ending: Ending) -> Tensor:
    """A vector for each document (documents, hidden) in fp32, pooled from its last hidden states (Reimers & Gurevych
    2019, section 3)."""
    hidden = pooled(model, batch, ending.pooling)
    return functional.normalize(hidden, dim=-1) if ending.normalized else hidden


def head_probabilities(logits: Tensor, ending: Ending) -> Tensor:
    """A head's logits (…, outputs) as probabilities of classes or of independent labels; for regression, unchanged."""
    if ending.problem == "regression":
        return logits
    return torch.sigmoid(logits) if ending.problem == "multi_label_classification" else torch.softmax(logits, -1)


def _head_on(plain: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The logits that the model's own head computes from hidden states (rows, positions, hidden)."""
    with _body_returning(plain, hidden):
        logits: Tensor = plain(input_ids=torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)).logits
    return logits


def _head_input(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The hidden state of each document that the head reads (documents, hidden)."""
    if hasattr(plain_model(model), "score"):
        return loss_hidden_states(model, batch)[0]
    return first_hidden_states(model, batch)


@torch.no_grad()
def with_features(model: PreTrainedModel, table: TokenTable, tokens_per_batch: int, device: torch.device) -> TokenTable:
    """The rows with a frozen body's features, computed once, so that only the head runs in training."""
    features = np.zeros((len(table), plain_model(model).config.get_text_config().hidden_size), np.float32)
    training = model.training
    model.eval()
    for rows in pack_any_order(table.lengths.tolist(), tokens_per_batch, padded=not packs(plain_model(model))):
        features[rows] = _head_input(model, collate(table, rows, device)).float().cpu().numpy()
    model.train(training)
    return replace(table, features=features)


def body_is_frozen(model: PreTrainedModel) -> bool:
    """Whether only a sequence classification head is trained."""
    plain = plain_model(model)
    if task_type(plain) != "SEQ_CLS":
        return False
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    head = {id(parameter) for name in head_names(plain) for parameter in plain.get_submodule(name).parameters()}
    return bool(trained) and trained <= head


@torch.no_grad()
def check_new_head(model: PreTrainedModel) -> None:
    """Compare `class_logits` or `tag_logits` with the model's own forward on a few tokens, once; families differ.

    Raises:
        UserError: the family's head reads the body's output in an unknown way.
    """
    ids = np.arange(5, 9).astype(np.int32) % model.config.get_text_config().vocab_size
    tags = task_type(plain_model(model)) == "TOKEN_CLS"
    marks = np.ones(len(ids), np.bool_) if tags else np.arange(len(ids)) == len(ids) - 1
    row = (ids, marks, Source("", 1), (0.0,) * int(marks.sum()))
    batch = collate(TokenTable.build([row]), [0], model.device)
    arguments: dict[str, Any] = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None].to(model.device)}
    if packs(model):
        positions = torch.arange(len(ids), device=model.device)[None] + first_position(model)
        arguments |= {"position_ids": positions, "document_lengths": [len(ids)]}
    own = model(**arguments).logits.float()
    ours = tag_logits(model, batch)[None] if tags else class_logits(model, batch)
    if not torch.allclose(ours.float(), own, atol=0.05, rtol=0.02):
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
