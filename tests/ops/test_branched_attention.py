"""Attention over documents that continue others, compared with each document in one text of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.ops.branched_attention import branched_attention, branched_attention_reference
from tunesmith.ops.document_attention import document_attention_reference


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Lengths of up to six documents, and which earlier one each continues."""
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    parents = [draw(st.integers(-1, number - 1)) for number in range(len(lengths))]
    return lengths, parents


def tensors(lengths: list[int], dtype: torch.dtype, prefix: int, dim: int) -> list[Tensor]:
    """q, k, v, and a prefix's keys and values if there is one."""
    torch.manual_seed(sum(lengths))
    shapes = [(4, sum(lengths)), (2, sum(lengths)), (2, sum(lengths)), *([(2, prefix)] * 2 if prefix else [])]
    return [torch.randn(1, *shape, dim, dtype=dtype, requires_grad=True) for shape in shapes]


def both(
    lengths: list[int], parents: list[int], dtype: torch.dtype, prefix: int = 0, dim: int = 8, **options: object
) -> list[tuple[Tensor, Tensor]]:
    """The result and the gradients, ours and the reference's."""
    q, k, v, *before = tensors(lengths, dtype, prefix, dim)
    pair = (before[0], before[1]) if before else None
    results = []
    for attention in (branched_attention, branched_attention_reference):
        out = attention(q, k, v, lengths, parents, 0.3, prefix=pair, **options)  # type: ignore[operator]
        torch.manual_seed(1)
        grads = torch.autograd.grad(out, [q, k, v, *before], torch.randn(out.shape, dtype=dtype))
        results.append([out.detach(), *grads])
    return list(zip(*results, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    trees(),
    st.sampled_from([None, 1, 7]),
    st.sampled_from([0, 3]),
    st.sampled_from([(None, False), (15.0, False), (None, True)]),
)
def test_branches_are_as_in_texts_of_their_own(
    tree: tuple[list[int], list[int]], window: int | None, prefix: int, shaping: tuple[float | None, bool]
) -> None:
    softcap, has_sinks = shaping
    sinks = torch.linspace(-1, 1, 4, dtype=torch.float64) if has_sinks else None
    for ours, reference in both(*tree, torch.float64, prefix, window=window, softcap=softcap, sinks=sinks):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.01), (torch.float32, 1e-6)])
def test_native_branches_are_as_in_texts_of_their_own(dtype: torch.dtype, most: float) -> None:
    """By the kernels of native/attention.h and attention_fp32.h, with prompts of several blocks of keys."""
    lengths, parents = [70, 33, 1, 64, 5, 90], [-1, 0, 0, -1, 3, 4]
    for window, prefix in ((None, 0), (None, 5), (40, 0)):
        for ours, reference in both(lengths, parents, dtype, prefix, dim=64, window=window):
            difference = torch.linalg.vector_norm((ours - reference).float())
            assert difference < most * torch.linalg.vector_norm(reference.float())


def test_the_reference_without_branches_is_document_attention() -> None:
    lengths = [3, 1, 6]
    q, k, v = tensors(lengths, torch.float64, 0, 8)
    ours = branched_attention_reference(q, k, v, lengths, [-1] * 3, 0.3, window=4)
    torch.testing.assert_close(ours, document_attention_reference(q, k, v, lengths, 0.3, window=4))
