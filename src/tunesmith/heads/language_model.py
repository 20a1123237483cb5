"""The language model head, over the vocabulary: what causal and sequence-to-sequence models share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.head import Command, Head
from tunesmith.data.batch import Batch
from tunesmith.data.example import Source
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.models.forward import check_lm_head, loss_hidden_states
from tunesmith.models.prompts import plain_model


@dataclass(frozen=True)
class LanguageModelHead(Head):
    """Predicts the next token."""

    commands: ClassVar[tuple[Command, ...]] = ("generate",)

    def check(self, model: PreTrainedModel) -> None:
        check_lm_head(model)

    def truncated(self, row: Tokens, limit: int, closing: int) -> Tokens | None:
        ids, loss_mask, source, *_ = row
        if not loss_mask[1:limit].any():
            return None
        return ids[:limit], loss_mask[:limit], source

    def dummy_rows(self, lengths: Sequence[int]) -> TokenTable:
        """Rows in which every token counts in the loss."""
        return TokenTable.build(
            (np.zeros(length, np.int32), np.ones(length, np.bool_), Source("", 1)) for length in lengths
        )

    def log_probabilities(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = plain_model(model).get_output_embeddings()(loss_hidden_states(model, batch)[0])
        return torch.log_softmax(logits.float(), -1)

    def loss_metrics(self, loss: float) -> dict[str, float]:
        return {"perplexity": math.exp(min(loss, 700.0))}
