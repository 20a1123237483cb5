"""Fused linear cross-entropy, computed from hidden states in chunks of rows: the full logits never exist.

With z = f(h Wᵀ + b), where f is the model family's scale and soft cap: loss = Σᵢ log Σⱼ exp zᵢⱼ − zᵢ,yᵢ.
The gradient of a chunk is (softmax(z) − onehot(y)) · f′, computed in place while the chunk's logits exist, as in
Liger-Kernel's fused linear cross-entropy (Hsu et al. 2024, section 3.2).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from tunesmith.ops import cuda, native

CHUNK_BYTES = 16 * 2**20  # of logits per chunk; larger chunks do not fit the caches
CHUNK_ROWS = 256  # at least; with fewer, most of a matmul's time goes into reordering the head's weight

ROWS = 64
"""The rows of a chunk are a multiple of this; the last chunk is padded with zeros. On a CPU, a matmul of a new shape
costs milliseconds of code generation and a megabyte that is never freed."""


class OutputLayer(NamedTuple):
    """The last layer: z = softcap · tanh(scale · (h Wᵀ + b) / softcap), or scale · (h Wᵀ + b) without a soft cap."""

    weight: Tensor  # (vocab, hidden)
    bias: Tensor | None = None  # (vocab,)
    scale: float = 1.0
    softcap: float | None = None


def cross_entropy_reference(
    hidden: Tensor, head: OutputLayer, labels: Tensor, smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """The definition. `linear_cross_entropy` is tested against this.

    Args:
        hidden: (rows, hidden).
        head: the last layer.
        labels: (rows,) int64, each in [0, vocab).
        smoothing: ε of label smoothing; the target is (1 − ε) onehot + ε / vocab (Szegedy et al. 2016, section 7).
        z_loss: λ; adds λ (log Σⱼ exp zⱼ)² per row, which keeps logits from drifting (Chowdhery et al. 2022, section 5).

    Returns:
        Scalar: the sum over rows, in nats.
    """
    logits = linear(hidden, head.weight, head.bias)  # (rows, vocab)
    logits = (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits) * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    return loss + z_loss * torch.logsumexp(logits, -1).square().sum()


def linear_cross_entropy(
    hidden: Tensor, head: OutputLayer, labels: Tensor, smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """`cross_entropy_reference` in chunks of about `CHUNK_BYTES` of logits.

    The forward pass computes the gradients of `hidden`, `head.weight` and `head.bias`, each only if it is required.

    Args:
        hidden: (rows, hidden).
        head: the last layer.
        labels: (rows,) int64, each in [0, vocab).
        smoothing: ε of label smoothing.
        z_loss: λ of the z-loss.

    Returns:
        Scalar: the sum over rows, in nats.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, head.weight, head.bias, head, labels, smoothing, z_loss)
    return loss


def row_losses(hidden: Tensor, head: OutputLayer, labels: Tensor) -> Tensor:
    """The loss of each row (rows,), fp32 or wider, without gradients, for evaluation."""
    losses = []
    with torch.no_grad():
        for rows, targets, count in _chunks(hidden, labels, head.weight):
            losses.append(_losses_and_gradient(rows, head, targets, needs_gradient=False)[0][:count])
    return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)


def linear_row_losses(hidden: Tensor, head: OutputLayer, labels: Tensor) -> Tensor:
    """The loss of each row (rows,), fp32 or wider, with gradients: for losses that are functions of log-probabilities.

    The forward pass computes ∂lossᵢ/∂hᵢ while the logits exist; since a row's loss depends on its own hidden state
    alone, the backward pass only scales it. Gradients of the head's weights need the factors first, so they compute the
    logits again.

    Args:
        hidden: (rows, hidden).
        head: the last layer.
        labels: (rows,) int64, each in [0, vocab).
    """
    losses: Tensor = _LinearRowLosses.apply(hidden, head.weight, head.bias, head, labels)
    return losses


def _chunks(hidden: Tensor, labels: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Rows and their labels, padded to a multiple of `ROWS`, and how many rows are not padding."""
    minimum = CHUNK_ROWS * (4 if weight.is_cuda else 1)  # a GPU needs larger chunks to use all of its cores
    size = max(minimum, CHUNK_BYTES // (weight.element_size() * weight.shape[0]) // ROWS * ROWS)
    for rows, targets in zip(hidden.split(size), labels.split(size), strict=True):
        padding = -len(rows) % ROWS
        yield pad(rows, (0, 0, 0, padding)), pad(targets, (0, padding)), len(rows)


def logits_of(rows: Tensor, head: OutputLayer) -> Tensor:
    """(rows, vocab) in fp32 or wider, scaled and soft-capped."""
    logits = linear(rows, head.weight, head.bias)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: OutputLayer,
        labels: Tensor,
        smoothing: float,
        z_loss: float,
    ) -> Tensor:
        head = OutputLayer(weight, bias, head.scale, head.softcap)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide_dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        loss = hidden.new_zeros((), dtype=wide_dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide_dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide_dtype) if needs_bias and bias is not None else None
        start = 0
        for rows, targets, count in _chunks(hidden, labels, weight):
            needs_gradient = needs_hidden or needs_weight or needs_bias
            if smoothing or z_loss:
                losses, g = _smoothed_losses_and_gradient(rows, head, targets, needs_gradient, smoothing, z_loss)
            else:
                losses, g = _losses_and_gradient(rows, head, targets, needs_gradient)
            loss += losses[:count].sum()
            if g is not None:
                g[count:] = 0
                if grad_hidden is not None:
                    grad_hidden[start : start + count] = (g @ weight)[:count]
                if grad_weight is not None:
                    grad_weight += g.T @ rows
                if grad_bias is not None:
                    grad_bias += g.sum(0)
            del g  # free it before the next chunk's logits exist
            start += count
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        grad = grads[0]
        return (
            None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad).to(weight_dtype),
            None if grad_bias is None else (grad_bias * grad).to(bias_dtype),
            *[None] * 4,
        )


class _LinearRowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: OutputLayer, labels: Tensor
    ) -> Tensor:
        ctx.head = OutputLayer(weight, bias, head.scale, head.softcap)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        all_losses = []
        start = 0
        for rows, targets, count in _chunks(hidden, labels, weight):
            losses, g = _losses_and_gradient(rows, ctx.head, targets, needs_hidden)
            all_losses.append(losses[:count])
            if g is not None and grad_hidden is not None:
                grad_hidden[start : start + count] = (g @ weight)[:count]
            del g  # free it before the next chunk's logits exist
            start += count
        wide_dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        again = (hidden, labels) if needs_weight or needs_bias else (None, None)
        ctx.save_for_backward(grad_hidden, weight, bias, *again)
        return torch.cat(all_losses) if all_losses else hidden.new_zeros(0, dtype=wide_dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, weight, bias, hidden, labels = ctx.saved_tensors
        factors = grads[0]
        if grad_hidden is not None:
            grad_hidden = grad_hidden * factors[:, None].to(grad_hidden.dtype)
        if hidden is None:
            return grad_hidden, *[None] * 4
        grad_weight = torch.zeros_like(weight, dtype=factors.dtype)
        grad_bias = torch.zeros_like(bias, dtype=factors.dtype) if bias is not None else None
        head = OutputLayer(weight, bias, ctx.head.scale, ctx.head.softcap)
        start = 0
        for rows, targets, count in _chunks(hidden, labels, weight):
            g = _losses_and_gradient(rows, head, targets, needs_gradient=True)[1]
            assert g is not None
            g[count:] = 0
            g[:count] *= factors[start : start + count, None].to(g.dtype)
            grad_weight += g.T @ rows
            if grad_bias is not None:
                grad_bias += g.sum(0)
            start += count
        return (
            grad_hidden,
            grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            *[None] * 2,
        )


def _losses_and_gradient(
    rows: Tensor, head: OutputLayer, targets: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Each row's loss (rows,), and ∂loss/∂(h Wᵀ + b) (rows, vocab) in the rows' dtype if it is needed."""
    if head.softcap is None and native.takes(rows, head.weight):
        z = linear(rows, head.weight, head.bias)
        losses = rows.new_empty(len(rows), dtype=torch.float32)
        native.call("cross_entropy", z.dtype, z, targets, losses, *z.shape, head.scale, needs_gradient)
        return losses, z if needs_gradient else None
    if head.softcap is None and head.scale == 1.0 and rows.is_cuda and cuda.liger("cross_entropy"):
        return cuda.losses_and_gradient(linear(rows, head.weight, head.bias), targets, needs_gradient)
    return _smoothed_losses_and_gradient(rows, head, targets, needs_gradient)


def _smoothed_losses_and_gradient(
    rows: Tensor, head: OutputLayer, targets: Tensor, needs_gradient: bool, smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """`_losses_and_gradient` with smoothed labels and λ (log Z)²: ∂/∂z = p (1 + 2 λ log Z) − (1 − ε) onehot − ε / V."""
    z = logits_of(rows, head)
    log_z = torch.logsumexp(z, -1, keepdim=True)  # (rows, 1)
    log_p = z - log_z
    losses = -(1 - smoothing) * log_p.gather(-1, targets[:, None])[:, 0] + z_loss * log_z[:, 0].square()
    if smoothing:
        losses -= smoothing * log_p.mean(-1)
    if not needs_gradient:
        return losses, None
    g = log_p.exp_()
    if smoothing or z_loss:
        g.mul_(1 + 2 * z_loss * log_z).sub_(smoothing / z.shape[-1])
    g.scatter_add_(-1, targets[:, None], g.new_full((len(g), 1), smoothing - 1.0))
    return losses, _through_head(g, z, head).to(rows.dtype)


def _through_head(g: Tensor, z: Tensor, head: OutputLayer) -> Tensor:
    """∂loss/∂(h Wᵀ + b) from ∂loss/∂z, computed in place."""
    if head.softcap is not None:
        g.mul_(1 - (z / head.softcap).square())  # derivative of tanh
    return g if head.scale == 1.0 else g.mul_(head.scale)
