"""Noise on the embeddings while a model is trained (NEFTune, Jain et al. 2023, algorithm 1)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.models.prompts import plain_model


def add_neftune(model: PreTrainedModel, alpha: float) -> None:
    """From now on, in training, embeddings are e + u · α / √(L · d), u uniform in [−1, 1), L the row's tokens."""
    plain = plain_model(model)
    lengths: list[Tensor] = []

    def listen(_: nn.Module, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        lengths[:] = [] if given.get("inputs_embeds") is not None else [tokens_of_rows(given)]

    def disturb(_: nn.Module, __: tuple[Any, ...], embeddings: Tensor) -> Tensor:
        if not plain.training or not lengths:
            return embeddings
        size = alpha / (lengths.pop().to(embeddings.device) * embeddings.shape[-1]).sqrt()
        noise = torch.empty_like(embeddings).uniform_(-1, 1)
        return embeddings + noise * size[..., None].to(embeddings.dtype)

    reader = plain.get_encoder() if plain.config.is_encoder_decoder else plain.base_model
    reader.register_forward_pre_hook(listen, with_kwargs=True)
    reader.get_input_embeddings().register_forward_hook(disturb)  # an encoder's own, of the one tied weight


def tokens_of_rows(given: dict[str, Any]) -> Tensor:
    """How many tokens the row of each token has, (rows, width) float, by what a body is called with."""
    if "document_lengths" in given:
        sizes = torch.tensor(given["document_lengths"])
        return torch.repeat_interleave(sizes, sizes)[None].float()
    mask: Tensor = given["attention_mask"]
    return mask.sum(1, keepdim=True).float().expand(-1, given["input_ids"].shape[1])
