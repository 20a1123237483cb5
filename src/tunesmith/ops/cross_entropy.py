"""Cross-entropy straight from hidden states, a chunk of rows at a time, so that the full logits never exist.

With z = f(h Wᵀ + b), where f scales and soft-caps as the family does: loss = Σᵢ log Σⱼ exp zᵢⱼ − zᵢ,yᵢ.
The gradient of a chunk is (softmax(z) − onehot(y)) · f′, formed in place while its logits are at hand, as in
Liger-Kernel's fused linear cross-entropy (Hsu et al. 2024, section 3.2).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from tunesmith.ops import cuda, native

CHUNK_BYTES = 16 * 2**20  # of logits in a chunk: larger ones miss the caches
CHUNK_ROWS = 256  # at least: for fewer, a product's time goes into rearranging the head's weight

ROWS = 64
"""A chunk's rows are a multiple of it, the last one's filled up with zeros: a product of a shape that has not been seen
before costs a CPU milliseconds of code generation and a megabyte that is kept."""


class Head(NamedTuple):
    """The last layer: z = softcap · tanh(scale · (h Wᵀ + b) / softcap), or scale · (h Wᵀ + b) without a soft cap."""

    weight: Tensor  # (vocab, hidden)
    bias: Tensor | None = None  # (vocab,)
    scale: float = 1.0
    softcap: float | None = None


def cross_entropy_reference(
    hidden: Tensor, head: Head, labels: Tensor, smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """The definition. `linear_cross_entropy` is held to this.

    Args:
        hidden: (rows, hidden).
        head: the last layer.
        labels: (rows,) int64, each in [0, vocab).
        smoothing: ε of label smoothing: the target is (1 − ε) onehot + ε / vocab (Szegedy et al. 2016, section 7).
        z_loss: λ of λ (log Σⱼ exp zⱼ)², which keeps logits from drifting (Chowdhery et al. 2022, section 5).

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
    hidden: Tensor, head: Head, labels: Tensor, smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """`cross_entropy_reference` in chunks of about `CHUNK_BYTES` of logits.

    Gradients of `hidden`, `head.weight` and `head.bias` are formed in the forward pass, each only where asked for.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, head.weight, head.bias, head, labels, smoothing, z_loss)
    return loss


def row_losses(hidden: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Each row's own loss (rows,), fp32 or wider, without gradients: for evaluation."""
    losses = []
    with torch.no_grad():
        for rows, targets, real in _chunks(hidden, labels, head.weight):
            losses.append(_losses_and_gradient(rows, head, targets, wants_gradient=False)[0][:real])
    return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)


def _chunks(hidden: Tensor, labels: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Rows and their labels, filled up to a multiple of `ROWS`, and how many of them are real."""
    least = CHUNK_ROWS * (4 if weight.is_cuda else 1)  # a GPU's thousands of cores want more at once
    size = max(least, CHUNK_BYTES // (weight.element_size() * weight.shape[0]) // ROWS * ROWS)
    for rows, targets in zip(hidden.split(size), labels.split(size), strict=True):
        missing = -len(rows) % ROWS
        yield pad(rows, (0, 0, 0, missing)), pad(targets, (0, missing)), len(rows)


def logits_of(rows: Tensor, head: Head) -> Tensor:
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
        head: Head,
        labels: Tensor,
        smoothing: float,
        z_loss: float,
    ) -> Tensor:
        head = Head(weight, bias, head.scale, head.softcap)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        loss = hidden.new_zeros((), dtype=wide)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if wants_bias and bias is not None else None
        start = 0
        for rows, targets, real in _chunks(hidden, labels, weight):
            wants_gradient = wants_hidden or wants_weight or wants_bias
            if smoothing or z_loss:
                losses, g = _smoothed_losses_and_gradient(rows, head, targets, wants_gradient, smoothing, z_loss)
            else:
                losses, g = _losses_and_gradient(rows, head, targets, wants_gradient)
            loss += losses[:real].sum()
            if g is not None:
                g[real:] = 0
                if grad_hidden is not None:
                    grad_hidden[start : start + real] = (g @ weight)[:real]
                if grad_weight is not None:
                    grad_weight += g.T @ rows
                if grad_bias is not None:
                    grad_bias += g.sum(0)
            del g  # before the next chunk's logits are made
            start += real
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        up = grads[0]
        return (
            None if grad_hidden is None else grad_hidden * up.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * up).to(weight_dtype),
            None if grad_bias is None else (grad_bias * up).to(bias_dtype),
            *[None] * 4,
        )


def _losses_and_gradient(
    rows: Tensor, head: Head, targets: Tensor, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Each row's loss (rows,), and ∂loss/∂(h Wᵀ + b) (rows, vocab) in the rows' precision where it is wanted."""
    if head.softcap is None and native.takes(rows, head.weight):
        z = linear(rows, head.weight, head.bias)
        losses = rows.new_empty(len(rows), dtype=torch.float32)
        native.call("cross_entropy", z.dtype, z, targets, losses, *z.shape, head.scale, wants_gradient)
        return losses, z if wants_gradient else None
    if head.softcap is None and head.scale == 1.0 and rows.is_cuda and cuda.liger("cross_entropy"):
        return cuda.losses_and_gradient(linear(rows, head.weight, head.bias), targets, wants_gradient)
    return _smoothed_losses_and_gradient(rows, head, targets, wants_gradient)


def _smoothed_losses_and_gradient(
    rows: Tensor, head: Head, targets: Tensor, wants_gradient: bool, smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """`_losses_and_gradient` with smoothed labels and λ (log Z)²: ∂/∂z = p (1 + 2 λ log Z) − (1 − ε) onehot − ε / V."""
    z = logits_of(rows, head)
    log_z = torch.logsumexp(z, -1, keepdim=True)  # (rows, 1)
    log_p = z - log_z
    losses = -(1 - smoothing) * log_p.gather(-1, targets[:, None])[:, 0] + z_loss * log_z[:, 0].square()
    if smoothing:
        losses -= smoothing * log_p.mean(-1)
    if not wants_gradient:
        return losses, None
    g = log_p.exp_()
    if smoothing or z_loss:
        g.mul_(1 + 2 * z_loss * log_z).sub_(smoothing / z.shape[-1])
    g.scatter_add_(-1, targets[:, None], g.new_full((len(g), 1), smoothing - 1.0))
    return losses, _through_head(g, z, head).to(rows.dtype)


def _through_head(g: Tensor, z: Tensor, head: Head) -> Tensor:
    """∂loss/∂(h Wᵀ + b) of ∂loss/∂z, in its memory."""
    if head.softcap is not None:
        g.mul_(1 - (z / head.softcap).square())  # d tanh
    return g if head.scale == 1.0 else g.mul_(head.scale)
