"""The head that stands on a body: over the vocabulary, or new and over classes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tunesmith.data.example import Source
from tunesmith.data.pack import Batch, collate, filled
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.models.attention import first_position, packs
from tunesmith.models.forward import first_hidden_states, learnt_hidden_states
from tunesmith.models.prompts import plain_model, virtual_tokens


def head_names(model: PreTrainedModel) -> list[str]:
    """Names of the modules of a new head over classes; empty where the model ends in the vocabulary."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return []
    body = model.base_model
    return [
        name for name, child in model.named_children() if child is not body and any(True for _ in child.parameters())
    ]


def head_parameters(model: PreTrainedModel) -> int:
    """Numbers in a new head over classes; nothing where the model ends in the vocabulary."""
    return sum(parameter.numel() for name in head_names(model) for parameter in model.get_submodule(name).parameters())


def class_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The head's scores of each document (documents, classes), through the family's own head.

    Decoders (transformers' `score`) read the last token; encoders' heads differ, and all read the first.
    """
    plain = plain_model(model)
    hidden = torch.as_tensor(batch.features).to(plain.dtype) if batch.features is not None else _read(model, batch)
    if hasattr(plain, "score"):
        logits: Tensor = plain.score(hidden)
        return logits
    with _body_given(plain, hidden[:, None]):
        found: Tensor = plain(input_ids=batch.input_ids.new_zeros(len(hidden), 1)).logits
    return found


@torch.no_grad()
def told(
    model: PreTrainedModel, labels: Sequence[str], table: TokenTable, tokens_per_batch: int
) -> list[tuple[str, float]]:
    """The likeliest class of each row, by name, and its probability, in the table's order."""
    found = [("", 0.0)] * len(table)
    for rows in filled(table.lengths.tolist(), tokens_per_batch, padded=not packs(plain_model(model))):
        logits = class_logits(model, collate(table, rows, model.device)).float()
        sure, likeliest = torch.softmax(logits, -1).max(-1)
        for row, place, probability in zip(rows, likeliest.tolist(), sure.tolist(), strict=True):
            found[row] = (labels[place], probability)
    return found


@torch.no_grad()
def classes_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], texts: Sequence[str]
) -> list[tuple[str, float]]:
    """The likeliest class of each text and its probability, through the model's own forward."""
    found = []
    positions = model.config.get_text_config().max_position_embeddings
    room = positions - virtual_tokens(model) - first_position(plain_model(model))
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=room).to(model.device)
        inputs.pop("token_type_ids", None)
        probabilities = torch.softmax(model(**inputs).logits[0].float(), -1)
        place = int(probabilities.argmax())
        found.append((labels[place], float(probabilities[place])))
    return found


def _read(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The hidden state that the head reads of each document (documents, hidden)."""
    if hasattr(plain_model(model), "score"):
        return learnt_hidden_states(model, batch)[0]
    return first_hidden_states(model, batch)


@torch.no_grad()
def with_features(model: PreTrainedModel, table: TokenTable, tokens_per_batch: int, device: torch.device) -> TokenTable:
    """The rows with what a frozen body makes of each, computed once, so that only the head runs from then on."""
    found = np.zeros((len(table), plain_model(model).config.get_text_config().hidden_size), np.float32)
    training = model.training
    model.eval()
    for rows in filled(table.lengths.tolist(), tokens_per_batch, padded=not packs(plain_model(model))):
        found[rows] = _read(model, collate(table, rows, device)).float().cpu().numpy()
    model.train(training)
    return replace(table, features=found)


def body_is_frozen(model: PreTrainedModel) -> bool:
    """Whether nothing but a head over classes moves."""
    plain = plain_model(model)
    moving = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    own = {id(parameter) for name in head_names(plain) for parameter in plain.get_submodule(name).parameters()}
    return bool(moving) and moving <= own


@torch.no_grad()
def check_class_head(model: PreTrainedModel) -> None:
    """Hold `class_logits` to the model's own forward on a few tokens, once, since families' heads differ.

    Raises:
        UserError: the family's head reads something else than what is known here.
    """
    ids = np.arange(5, 9).astype(np.int32) % model.config.get_text_config().vocab_size
    row = (np.append(ids, 0).astype(np.int32), np.array([False] * len(ids) + [True]), Source("", 1))
    batch = collate(TokenTable.build([row]), [0], model.device)
    given: dict[str, Any] = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None].to(model.device)}
    if packs(model):
        positions = torch.arange(len(ids), device=model.device)[None] + first_position(model)
        given |= {"position_ids": positions, "document_lengths": [len(ids)]}
    own = model(**given).logits.float()
    if not torch.allclose(class_logits(model, batch).float(), own, atol=0.05, rtol=0.02):
        raise UserError(
            f"{type(model).__name__}'s head reads its body in a way that is not known here, so what it learns would be "
            "wrong. This family cannot be trained as a classifier yet."
        )


class _Given(nn.Module):
    """Stands in for a body and returns what it has made already."""

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
def _body_given(plain: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """Within the block the model's body gives `hidden` (documents, 1, hidden), so that its forward runs the head."""
    body = plain.base_model
    setattr(plain, plain.base_model_prefix, _Given(hidden, body))
    try:
        yield
    finally:
        setattr(plain, plain.base_model_prefix, body)
