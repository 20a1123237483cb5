"""A model's predictions for texts: classes, a value, entities or a vector, computed by its own forward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.head import Head
from tunesmith.heads.prediction import Prediction


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    head: Head,
    texts: Sequence[str],
) -> list[list[Prediction]]:
    """The predictions for each text.

    Args:
        model: in evaluation mode, with its standard attention. Texts longer than its context are truncated.
        tokenizer: the model's own.
        head: what the model ends in, with its classifier if it has one.
        texts: the inputs.

    Returns:
        A list of predictions for each text.
    """
    return [head.predict(model, tokenizer, text) for text in texts]


@torch.no_grad()
def vector_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head: Head, text: str) -> Tensor:
    """The text's vector (hidden,), fp32. Arguments are those of `predict`."""
    return head.vector(model, tokenizer, text)
