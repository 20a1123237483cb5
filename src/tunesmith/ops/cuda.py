"""The same operations on CUDA: PyTorch's FlashAttention over packed documents (Dao 2023), and liger-kernel's Triton
kernels (Hsu et al. 2024) where it is installed. tests/test_gpu.py holds each to its definition."""

import inspect
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


@cache
def liger(name: str) -> Any:
    """A module of `liger_kernel.ops`; None where it is not installed."""
    return import_module(f"liger_kernel.ops.{name}") if find_spec("liger_kernel") else None


def losses_and_gradient(logits: Tensor, labels: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Each row's cross-entropy, and its gradient in the memory of the logits where it is wanted.

    Args:
        logits: (rows, vocab), contiguous, without a history.
        labels: (rows,).
    """
    logits.requires_grad_(wants_gradient)  # what the kernel asks to know whether a gradient is wanted
    found = liger("cross_entropy").cross_entropy_forward(logits, labels, None, -100, 0.0, 0.0, "none", None, False)
    logits.requires_grad_(False)
    return found[0].float(), logits if wants_gradient else None


@cache
def _flash() -> Any:
    """`torch.nn.attention.varlen.varlen_attn`, and whether it takes grouped queries; None in a PyTorch without it."""
    if find_spec("torch.nn.attention.varlen") is None:
        return None
    function = import_module("torch.nn.attention.varlen").varlen_attn
    known = inspect.signature(function).parameters
    return (function, "enable_gqa" in known) if {"scale", "window_size"} <= set(known) else None


def has_flash(q: Tensor, v: Tensor) -> bool:
    """Whether FlashAttention takes these queries and values."""
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] == v.shape[-1]
        and q.shape[-1] <= 256
        and q.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
        and _flash() is not None
    )


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], before: int, scale: float, window: int | None, causal: bool
) -> Tensor:
    """Attention within documents.

    Args:
        q: (tokens, heads, dim).
        k: (tokens + documents · before, kv_heads, dim): each document's keys come after `before` of a prefix.
        v: like k.
        lengths: of the documents.
        before: length of the prefix.
        scale: multiplies q kᵀ.
        window: how many of the latest tokens each sees; None for all.
        causal: whether a token sees none after it.

    Returns:
        (tokens, heads, dim).
    """
    function, grouped = _flash()
    if not grouped and q.shape[1] != k.shape[1]:
        k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    starts_q, starts_k = _starts(tuple(lengths), before, q.device)
    seen = (-1 if window is None else window - 1, 0) if causal else (-1, -1)
    more = {"enable_gqa": True} if grouped and q.shape[1] != k.shape[1] else {}
    most = max(lengths)
    out: Tensor = function(
        q.contiguous(), k.contiguous(), v.contiguous(), starts_q, starts_k, most, most + before,
        scale=scale, window_size=seen, **more,
    )  # fmt: skip
    return out


@lru_cache(maxsize=4)
def _starts(lengths: tuple[int, ...], before: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each document's queries and keys start, and the last ones end (documents + 1,) int32; made once a batch."""
    own = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    prefix = before * torch.arange(len(lengths) + 1, dtype=torch.int32)
    return own.to(device), (own + prefix).to(device)
