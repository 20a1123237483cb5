"""Small models in memory, batches of given tokens, and each row's results with the family's own forward."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bytewise import byte_tokenizer
from families import ENCODER_DECODERS, config_of
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from tunesmith.config.head import Head
from tunesmith.config.registry import METHODS, OBJECTIVES
from tunesmith.data.batch import Batch, collate
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.seq2seq_lm import Seq2SeqLMHead
from tunesmith.models.attention import use_document_attention
from tunesmith.modules.transposed_linear import as_linear

ROWS = [[5, 9, 13, 21, 30], [7, 8, 33, 11, 40, 12, 6, 50], [22, 6, 35], [41, 9, 9, 17, 60, 3, 28]]
"""Token ids of four rows of different lengths, all below 64 and none of them the padding token."""

_LAYERS = {
    "gpt2": ("n_layer",),
    "bloom": ("n_layer",),
    "distilbert": ("n_layers",),
    "t5": ("num_layers", "num_decoder_layers"),
    "bart": ("encoder_layers", "decoder_layers"),
}
"""A family's config fields for its number of blocks, where they differ from `num_hidden_layers`."""


def config_for(family: str, head: Head | None = None, layers: int = 3, **more: Any) -> PretrainedConfig:
    """The family's small config with this number of layers and this head, and weights large enough to matter."""
    sizes = _LAYERS.get(family, ("num_hidden_layers",))
    config = config_of(family, 64, **dict.fromkeys(sizes, layers))
    if family not in ENCODER_DECODERS:
        config.initializer_range = 0.2
    if head is not None:
        head.configure(config)
    for name, value in more.items():
        setattr(config, name, value)
    return config


def small_model(
    family: str = "llama",
    head: Head | None = None,
    dtype: torch.dtype = torch.float64,
    layers: int = 3,
    **more: Any,
) -> Any:
    """A model with random weights, also in biases and norms, and document attention if the family supports it."""
    config = config_for(family, head, layers, **more)
    kind = (head or (Seq2SeqLMHead() if family in ENCODER_DECODERS else CausalLMHead())).model_class(config)
    torch.manual_seed(0)
    model = as_linear(kind.from_config(config).eval())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.to(dtype)
    use_document_attention(model)
    return model


def stored_base(
    directory: Path, family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **more: Any
) -> Path:
    """A small model with random weights and its tokenizer, saved in a directory. Returns the directory."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = config_of(family, len(tokenizer), eos_token_id=tokenizer.eos_token_id, **more)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def own_forward(model: Any) -> Any:
    """The same weights with the family's own attention."""
    plain = deepcopy(model)
    plain.set_attn_implementation("eager")
    return plain


def batch_of(
    rows: Sequence[Sequence[int]] = ROWS,
    loss_mask: Sequence[Sequence[int]] | None = None,
    targets: Sequence[Sequence[float]] | None = None,
) -> Batch:
    """The rows in one batch.

    Args:
        rows: token ids.
        loss_mask: each row's loss positions. Default: all positions, or the last one if there are targets.
        targets: each row's targets, if they are not the next tokens.
    """
    table = []
    for number, ids in enumerate(rows):
        mask = np.zeros(len(ids), np.bool_)
        positions = (
            loss_mask[number] if loss_mask is not None else range(len(ids)) if targets is None else [len(ids) - 1]
        )
        mask[list(positions)] = True
        row: tuple[Any, ...] = (np.asarray(ids, np.int32), mask, Source("rows", number + 1))
        table.append(row if targets is None else (*row, tuple(targets[number])))
    return collate(TokenTable.build(table), range(len(table)))


def logits_alone(model: Any, rows: Sequence[Sequence[int]] = ROWS) -> list[Tensor]:
    """The logits of each row alone, with the family's own forward."""
    plain = own_forward(model)
    logits = []
    for ids in rows:
        tokens = torch.tensor(ids)[None]
        logits.append(plain(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0])
    return logits


def states_alone(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """The last hidden states of each text alone (tokens, hidden), with the family's own forward."""
    body = own_forward(model).base_model
    states = []
    for ids in rows:
        tokens = torch.tensor(ids)[None]
        states.append(body(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0])
    return states


def moving(model: Any) -> set[str]:
    """Names of the parameters that require gradients."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def method_of(kind: str, **values: Any) -> Any:
    return METHODS.load(kind).model_validate(values)


def objective_of(kind: str, **values: Any) -> Any:
    return OBJECTIVES.load(kind).model_validate(values)


def randomize(model: Any, spread: float = 0.3) -> Any:
    """Set every trained parameter to random values, so that zeros hide no errors."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


class TwoLayers(nn.Module):
    """(rows, 5) to (rows, 4), with parameter names like those outside of blocks and those inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(5, 6)
        self.block = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(torch.tanh(self.embedding(x)))
