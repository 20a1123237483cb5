"""NEFTune: noise on the embeddings during training (Jain et al. 2023, algorithm 1)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def add_neftune(plain: PreTrainedModel, alpha: float) -> None:
    """In training mode, make embeddings e + u · α / √(L · d), with u uniform in [−1, 1) and L the row's tokens.

    Args:
        plain: the model without PEFT's wrapper.
        alpha: α.
    """
    lengths: list[Tensor] = []

    def record_lengths(_: nn.Module, __: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        lengths[:] = [] if keywords.get("inputs_embeds") is not None else [tokens_of_rows(keywords)]

    def add_noise(_: nn.Module, __: tuple[Any, ...], embeddings: Tensor) -> Tensor:
        if not plain.training or not lengths:
            return embeddings
        size = alpha / (lengths.pop().to(embeddings.device) * embeddings.shape[-1]).sqrt()
        noise = torch.empty_like(embeddings).uniform_(-1, 1)
        return embeddings + noise * size[..., None].to(embeddings.dtype)

    body = plain.get_encoder() if plain.config.is_encoder_decoder else plain.base_model
    body.register_forward_pre_hook(record_lengths, with_kwargs=True)
    body.get_input_embeddings().register_forward_hook(add_noise)  # the encoder's module, which shares a tied weight


def tokens_of_rows(arguments: dict[str, Any]) -> Tensor:
    """For each token, the number of tokens in its row: (rows, width) float, from the arguments of a body's forward."""
    if "document_lengths" in arguments:
        sizes = torch.tensor(arguments["document_lengths"])
        return torch.repeat_interleave(sizes, sizes)[None].float()
    mask: Tensor = arguments["attention_mask"]
    return mask.sum(1, keepdim=True).float().expand(-1, arguments["input_ids"].shape[1])
