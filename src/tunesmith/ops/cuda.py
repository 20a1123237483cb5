"""CUDA versions of the operations: PyTorch's FlashAttention for packed documents (Dao 2023), and liger-kernel's Triton
kernels (Hsu et al. 2024) if it is installed; attention over pages. tests/test_gpu.py tests each against its
reference."""

import inspect
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


@cache
def liger(name: str) -> Any:
    """A module of `liger_kernel.ops`; None if liger-kernel is not installed."""
    return import_module(f"liger_kernel.ops.{name}") if find_spec("liger_kernel") else None


def losses_and_gradient(logits: Tensor, labels: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Each row's cross-entropy, and its gradient, which overwrites the logits.

    Args:
        logits: (rows, vocab), contiguous, detached from the autograd graph.
        labels: (rows,).
        needs_gradient: whether to compute the gradient.

    Returns:
        The losses (rows,) in fp32, and the gradient (rows, vocab), or None if it is not needed.
    """
    logits.requires_grad_(needs_gradient)  # the kernel reads this flag to decide whether to compute the gradient
    result = liger("cross_entropy").cross_entropy_forward(logits, labels, None, -100, 0.0, 0.0, "none", None, False)
    logits.requires_grad_(False)
    return result[0].float(), logits if needs_gradient else None


@cache
def _flash() -> Any:
    """`torch.nn.attention.varlen.varlen_attn`, and whether it supports grouped queries; None if PyTorch lacks it."""
    if find_spec("torch.nn.attention.varlen") is None:
        return None
    function = import_module("torch.nn.attention.varlen").varlen_attn
    parameters = inspect.signature(function).parameters
    return (function, "enable_gqa" in parameters) if {"scale", "window_size"} <= set(parameters) else None


def has_flash(q: Tensor, v: Tensor) -> bool:
    """Whether FlashAttention supports these queries and values."""
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
        k: (tokens + documents · before, kv_heads, dim): the keys of each document follow the `before` keys of a prefix.
        v: like k.
        lengths: tokens of each document.
        before: length of the prefix.
        scale: multiplies q kᵀ.
        window: how many of the latest tokens each token attends to; None for all.
        causal: whether a token attends only to itself and earlier tokens.

    Returns:
        (tokens, heads, dim).
    """
    function, grouped = _flash()
    if not grouped and q.shape[1] != k.shape[1]:
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    starts_q, starts_k = _starts(tuple(lengths), before, q.device)
    window_size = (-1 if window is None else window - 1, 0) if causal else (-1, -1)
    options = {"enable_gqa": True} if grouped and q.shape[1] != k.shape[1] else {}
    longest = max(lengths)
    out: Tensor = function(
        q.contiguous(), k.contiguous(), v.contiguous(), starts_q, starts_k, longest, longest + before,
        scale=scale, window_size=window_size, **options,
    )  # fmt: skip
    return out


@lru_cache(maxsize=4)
def _starts(lengths: tuple[int, ...], before: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cumulative lengths of the documents' queries and of their keys, (documents + 1,) int32 each; cached per batch."""
    own = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    prefix = before * torch.arange(len(lengths) + 1, dtype=torch.int32)
    return own.to(device), (own + prefix).to(device)


def has_paged(q: Tensor, v: Tensor, keys: Tensor) -> bool:
    """Whether paged_triton.py supports these queries and values over a cache with such keys."""
    return (
        q.is_cuda
        and q.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and keys.dtype == q.dtype
        and max(q.shape[-1], v.shape[-1]) <= 256
        and find_spec("triton") is not None
    )


def paged_attention(q: Tensor, *arguments: Any) -> Tensor:
    """`paged_attention` of paged_triton.py, which is imported here because it needs Triton."""
    with torch.cuda.device_of(q):
        out: Tensor = import_module("tunesmith.ops.paged_triton").paged_attention(q, *arguments)
    return out
