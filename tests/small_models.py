"""Small models in memory, batches of given tokens, and what the family's own forward makes of each row alone."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from families import ENCODER_DECODERS, config_of
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
)

from tunesmith.config.registry import METHODS, OBJECTIVES, named_kind
from tunesmith.data.example import Source
from tunesmith.data.pack import Batch, collate
from tunesmith.data.tokens import TokenTable
from tunesmith.ending import VOCABULARY, Ending
from tunesmith.models.attention import use_document_attention
from tunesmith.models.conv1d import as_linear

ROWS = [[5, 9, 13, 21, 30], [7, 8, 33, 11, 40, 12, 6, 50], [22, 6, 35], [41, 9, 9, 17, 60, 3, 28]]
"""Token ids of four rows of different lengths, all below 64 and none of them the padding."""

_HEADS = {
    "classes": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "vectors": AutoModel,
}

_LAYERS = {
    "gpt2": ("n_layer",),
    "bloom": ("n_layer",),
    "distilbert": ("n_layers",),
    "t5": ("num_layers", "num_decoder_layers"),
    "bart": ("encoder_layers", "decoder_layers"),
}
"""What a family's config calls its number of blocks, where that is a name of its own."""


def config_for(family: str, ending: Ending = VOCABULARY, layers: int = 3, **more: Any) -> PretrainedConfig:
    """The family's small config with as many layers and outputs, and weights large enough that all of them count."""
    sizes = _LAYERS.get(family, ("num_hidden_layers",))
    config = config_of(family, 64, **dict.fromkeys(sizes, layers))
    if family not in ENCODER_DECODERS:
        config.initializer_range = 0.2
    if ending.has_head:
        config.num_labels = len(ending.labels)
    if ending.kind == "classes":
        config.problem_type = ending.problem
    for name, value in more.items():
        setattr(config, name, value)
    return config


def small_model(
    family: str = "llama",
    ending: Ending = VOCABULARY,
    dtype: torch.dtype = torch.float64,
    layers: int = 3,
    **more: Any,
) -> Any:
    """A model of three blocks with random weights, ready for packed rows; biases and norms are random too."""
    config = config_for(family, ending, layers, **more)
    kind = _HEADS.get(ending.kind, AutoModelForSeq2SeqLM if family in ENCODER_DECODERS else AutoModelForCausalLM)
    torch.manual_seed(0)
    model = as_linear(kind.from_config(config).eval())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.to(dtype)
    use_document_attention(model)
    return model


def own_forward(model: Any) -> Any:
    """The same weights behind the family's own attention."""
    plain = deepcopy(model)
    plain.set_attn_implementation("eager")
    return plain


def batch_of(
    rows: Sequence[Sequence[int]] = ROWS,
    loss_mask: Sequence[Sequence[int]] | None = None,
    told: Sequence[Sequence[float]] | None = None,
) -> Batch:
    """The rows in one batch.

    Args:
        rows: token ids.
        learnt: of each row, the places that are learnt. Default: all, or the last where something is told of a text.
        told: of each row, what is learnt there where it is no next token.
    """
    made = []
    for number, ids in enumerate(rows):
        marks = np.zeros(len(ids), np.bool_)
        places = loss_mask[number] if loss_mask is not None else range(len(ids)) if told is None else [len(ids) - 1]
        marks[list(places)] = True
        row: tuple[Any, ...] = (np.asarray(ids, np.int32), marks, Source("rows", number + 1))
        made.append(row if told is None else (*row, tuple(told[number])))
    return collate(TokenTable.build(made), range(len(made)))


def logits_alone(model: Any, rows: Sequence[Sequence[int]] = ROWS) -> list[Tensor]:
    """The logits of each row by itself, through the family's own forward."""
    plain = own_forward(model)
    found = []
    for ids in rows:
        tokens = torch.tensor(ids)[None]
        found.append(plain(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0])
    return found


def states_alone(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """(tokens, hidden) the last hidden states of each text by itself, through the family's own forward."""
    body = own_forward(model).base_model
    found = []
    for ids in rows:
        tokens = torch.tensor(ids)[None]
        found.append(body(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0])
    return found


def moving(model: Any) -> set[str]:
    """Names of the parameters that require gradients."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def method_of(kind: str, **values: Any) -> Any:
    return named_kind(METHODS, kind).model_validate(values)


def objective_of(kind: str, **values: Any) -> Any:
    return named_kind(OBJECTIVES, kind).model_validate(values)


def randomize(model: Any, spread: float = 0.3) -> Any:
    """Every parameter that moves at random values, so that nothing is hidden behind zeros."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


class TwoLayers(nn.Module):
    """(rows, 5) to (rows, 4), with parameters named as outside of the blocks and inside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(5, 6)
        self.block = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(torch.tanh(self.embedding(x)))
