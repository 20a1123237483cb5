"""The native kernels in bf16 and fp32 equal the references in float64 on the same numbers."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processors import processor, threads
from torch import Tensor

from tunesmith.ops import native
from tunesmith.ops.cross_entropy import OutputLayer, cross_entropy_reference, linear_cross_entropy
from tunesmith.ops.document_attention import document_attention, document_attention_reference
from tunesmith.ops.dropout import dropout
from tunesmith.ops.gated import Activation, gated, gated_reference
from tunesmith.ops.rms_norm import rms_norm, rms_norm_reference
from tunesmith.ops.rotary import rotary, rotary_reference

few = settings(max_examples=25)
SHARED = [7, 700]
"""Lengths of documents of which two threads share the longer one, also with a single head of keys."""

built = pytest.mark.skipif(native.library() is None, reason="this machine has no C compiler to build the kernels with")
dtypes = st.sampled_from([torch.bfloat16, torch.float32])


@contextmanager
def reported() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Collect the names and arguments of the kernels, which do not run meanwhile."""
    calls: list[tuple[str, tuple[Any, ...]]] = []
    with native.report_instead_of_calling(lambda name, arguments: calls.append((name, arguments))):
        yield calls


def random(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


def assert_close_to_float64(
    fast: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    slack: float = 4.0,
    floor: float = 1e-3,
) -> None:
    """Check values and gradients against float64.

    The tolerance is `slack` units of the inputs' precision, relative to the largest expected value, or to `floor` if
    that is larger, since cancellation leaves rounding errors.
    """
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    out, expected = fast(*ours), reference(*exact)
    up = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype)
    grads = torch.autograd.grad(out, ours, up.to(out.dtype))
    expected_grads = torch.autograd.grad(expected, exact, up.double())
    eps = torch.finfo(inputs[0].dtype).eps
    slack *= 1 if inputs[0].dtype == torch.bfloat16 else 16  # fp32 inputs are computed in fp32, so errors accumulate
    for actual, reference_value in zip((out, *grads), (expected, *expected_grads), strict=True):
        tolerance = slack * eps * max(floor, float(reference_value.detach().abs().max()))
        torch.testing.assert_close(actual.double(), reference_value, rtol=slack * eps, atol=tolerance)


def test_kernels_are_built_if_there_is_a_compiler() -> None:
    assert sys.platform != "linux" or shutil.which("cc") is None or native.library() is not None


@built
@few
@given(rows=st.integers(1, 70), hidden=st.sampled_from([5, 64, 769]), dtype=dtypes)
def test_rms_norm_equals_float64(rows: int, hidden: int, dtype: torch.dtype) -> None:
    inputs = [random(2, rows, hidden, dtype=dtype), random(hidden, dtype=dtype, seed=3)]
    assert_close_to_float64(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: _norm(x, w), inputs, slack=8)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm_reference(x, weight, 1e-5)


@built
@few
@given(
    rows=st.integers(1, 70),
    inner=st.sampled_from([1, 9, 5000]),
    activation=st.sampled_from(["silu", "gelu_tanh"]),
    dtype=dtypes,
    scale=st.sampled_from([0.01, 1.0, 100.0]),
)
def test_gated_equals_float64(rows: int, inner: int, activation: Activation, dtype: torch.dtype, scale: float) -> None:
    inputs = [random(rows, inner, dtype=dtype, scale=scale), random(rows, inner, dtype=dtype, seed=1)]
    assert_close_to_float64(
        lambda gate, up: gated(gate, up, activation), lambda gate, up: gated_reference(gate, up, activation), inputs
    )


@built
@few
@given(tokens=st.integers(1, 70), heads=st.integers(1, 3), half=st.sampled_from([1, 4, 33]), dtype=dtypes)
def test_rotary_embedding_equals_float64(tokens: int, heads: int, half: int, dtype: torch.dtype) -> None:
    angles = torch.rand(1, tokens, half) * 6
    cos, sin = (torch.cat([part, part], -1).to(dtype) for part in (angles.cos(), angles.sin()))
    x = random(1, tokens, heads, 2 * half, dtype=dtype).transpose(1, 2)  # the layout of a projection's output
    assert_close_to_float64(
        lambda x: rotary(x, cos, sin), lambda x: rotary_reference(x, cos.double(), sin.double()), [x], slack=8
    )


@built
@few
@given(
    rows=st.integers(1, 300),
    vocab=st.sampled_from([2, 11, 1000]),
    dtype=dtypes,
    scale=st.sampled_from([1.0, 0.25]),
    spread=st.sampled_from([0.1, 3.0]),
)
def test_cross_entropy_equals_float64(rows: int, vocab: int, dtype: torch.dtype, scale: float, spread: float) -> None:
    """The float64 reference uses the logits as rounded to the tested precision."""
    hidden = torch.eye(vocab, dtype=dtype)[torch.arange(rows) % vocab]  # so that the logits are elements of the weight
    weight = random(vocab, vocab, dtype=dtype, scale=spread)
    labels = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(rows))
    assert_close_to_float64(
        lambda w: linear_cross_entropy(hidden, OutputLayer(w, scale=scale), labels).to(dtype),
        lambda w: cross_entropy_reference(hidden.double(), OutputLayer(w, scale=scale), labels),
        [weight],
        slack=8,
        # The size of a logit, since a loss may be far smaller; rows with one hidden state round alike, so that their
        # errors add up in a gradient that is near 0.
        floor=scale * max(spread, rows / vocab / 32),
    )


@built
@pytest.mark.parametrize(
    ("dtype", "instructions"),
    [
        (torch.bfloat16, {"amx": True}),
        (torch.bfloat16, {"amx": False}),
        (torch.bfloat16, {"amx": False, "lanes": 8}),
        *((torch.float32, {"lanes": lanes}) for lanes in (16, 8, 4)),
    ],
    ids=str,
)
@few
@given(
    lengths=st.lists(st.integers(1, 80) | st.just(150), min_size=1, max_size=5) | st.just(SHARED),
    kv_heads=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 3]),
    dim=st.sampled_from([32, 64, 96, 128]),
    window=st.sampled_from([None, 1, 20]),
    causal=st.booleans(),
    before=st.sampled_from([0, 5]),
)
def test_document_attention_equals_float64(
    dtype: torch.dtype,
    instructions: dict[str, Any],
    lengths: list[int],
    kv_heads: int,
    groups: int,
    dim: int,
    window: int | None,
    causal: bool,
    before: int,
) -> None:
    tokens = sum(lengths)
    window = window if causal and not before else None
    q = random(1, tokens, kv_heads * groups, dim, dtype=dtype).transpose(1, 2)
    k, v = (random(1, tokens, kv_heads, dim, dtype=dtype, seed=each).transpose(1, 2) for each in (1, 2))
    prefix = [random(1, kv_heads, before, dim, dtype=dtype, seed=each) for each in (3, 4)] if before else []
    scale = dim**-0.5

    def fast(q: Tensor, k: Tensor, v: Tensor, *prefix: Tensor) -> Tensor:
        return document_attention(q, k, v, lengths, scale, window, causal=causal, prefix=tuple(prefix) or None)

    def reference(q: Tensor, k: Tensor, v: Tensor, *prefix: Tensor) -> Tensor:
        return document_attention_reference(q, k, v, lengths, scale, window, causal, tuple(prefix) or None)

    # A single key has a gradient of 0, of which rounding leaves a unit of the values' precision: in fp32, more than the
    # tolerance for small values.
    floor = 1e-3 if dtype == torch.bfloat16 else 0.5
    with processor(**instructions), threads(2 if lengths == SHARED else 1):
        assert_close_to_float64(fast, reference, [q, k, v, *prefix], floor=floor)


@built
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("lengths", "kv_heads", "groups", "window", "causal"),
    [
        ([900], 1, 1, None, True),  # one head of keys: the queries are split
        ([900], 1, 3, None, False),
        ([900], 1, 2, 50, True),  # the last parts see none of the first keys
        ([40, 900, 3], 2, 2, None, True),  # the long one is split, the others are not
    ],
)
@pytest.mark.parametrize("count", [2, 5])
def test_threads_that_share_a_document_compute_the_same(
    dtype: torch.dtype,
    lengths: list[int],
    kv_heads: int,
    groups: int,
    window: int | None,
    causal: bool,
    count: int,
) -> None:
    """Parts of a document sum gradients of the same keys, and these sums are added in an order that does not depend on
    which part ends first."""
    tokens = sum(lengths)
    q, up = (random(1, tokens, kv_heads * groups, 96, dtype=dtype, seed=each).transpose(1, 2) for each in (0, 3))
    k, v = (random(1, tokens, kv_heads, 96, dtype=dtype, seed=each).transpose(1, 2) for each in (1, 2))

    def results() -> list[Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        torch.manual_seed(3)
        out = document_attention(*inputs, lengths, 0.2, window, dropout=0.1, causal=causal)
        return [out.detach(), *torch.autograd.grad(out, inputs, up)]

    with threads(1):
        alone = results()
    with threads(count):
        shared, *more = (results() for _ in range(5))
    for each in more:
        assert all(map(torch.equal, each, shared))
    assert all(map(torch.equal, shared[:2], alone[:2])), "no sum of the output and of the queries' gradients is split"
    for one, many in zip(alone[2:], shared[2:], strict=True):
        if dtype == torch.float32:  # in bf16, most differences are rounded away
            assert not torch.equal(one, many), "the document was split"
        torch.testing.assert_close(many, one, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


@built
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dropout_zeroes_its_share_and_the_gradient_uses_the_same_mask(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(300, 1000, dtype=dtype, requires_grad=True)
    out = dropout(x, 0.1)
    share = float((out == 0).double().mean())
    assert share == pytest.approx(0.1, abs=0.003)  # five standard deviations
    assert set(out.detach().unique().tolist()) == {0.0, float(torch.tensor(1 / 0.9, dtype=dtype))}
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert torch.equal(grad, out.detach())
    columns = (out == 0).double().mean(0)
    assert float(columns.std()) == pytest.approx((0.09 / 300) ** 0.5, rel=0.1)  # no row repeats another's mask
    assert not torch.equal(dropout(x, 0.1) == 0, out == 0)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.1), out)


@built
def test_a_share_of_0_or_1_and_other_dtypes_need_no_dropout_kernel() -> None:
    x = torch.randn(30, 10, requires_grad=True)
    assert torch.equal(dropout(x, 0.0), x)
    nothing = dropout(x, 1.0)
    assert torch.equal(nothing, torch.zeros_like(x))
    assert torch.equal(torch.autograd.grad(nothing.sum(), x)[0], torch.zeros_like(x))
    with reported() as calls:
        for share in (0.0, 1.0):
            dropout(x, share)
        dropout(x.double(), 0.5)
        assert not calls
        dropout(x, 0.5)
        dropout(x.bfloat16(), 0.5)
    assert [name for name, _ in calls] == ["dropout_fp32", "dropout_bf16"]


@built
@pytest.mark.parametrize(
    ("dtype", "dim", "value_dim", "kernels"),
    [
        (torch.bfloat16, 64, 64, ["attention_bf16"]),
        (torch.bfloat16, 96, 96, ["attention_bf16"]),
        (torch.bfloat16, 48, 48, []),
        (torch.bfloat16, 64, 32, []),
        (torch.float32, 64, 64, ["attention_fp32"]),
        (torch.float32, 48, 48, []),
        (torch.float64, 64, 64, []),
    ],
)
def test_the_attention_kernel_runs_for_a_head_size_of_a_multiple_of_32(
    dtype: torch.dtype, dim: int, value_dim: int, kernels: list[str]
) -> None:
    """It computes 32 numbers at a time, with values as wide as keys; other sizes use PyTorch's kernel."""
    q, k = (random(1, 2, 7, dim, dtype=dtype, seed=each) for each in (0, 1))
    v = random(1, 2, 7, value_dim, dtype=dtype, seed=2)
    with reported() as calls:
        out = document_attention(q, k, v, [4, 3], 0.1)
    assert out.shape == (1, 2, 7, value_dim)
    assert [name for name, _ in calls] == kernels


@built
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_dropout_zeroes_its_share_and_gradients_use_the_same_mask(dtype: torch.dtype) -> None:
    lengths = [40, 70]
    q, k = (random(1, 110, 2, 32, dtype=dtype, seed=each).transpose(1, 2) for each in (0, 1))
    # With one-hot values the output is the probabilities themselves, 32 keys at a time.
    v = torch.zeros(1, 2, 110, 32, dtype=dtype)
    for token in range(110):
        v[:, :, token, token % 32] = 1
    q.requires_grad_(), k.requires_grad_(), v.requires_grad_()

    def attend() -> Tensor:
        torch.manual_seed(3)
        return document_attention(q, k, v, lengths, 0.2, dropout=0.25, causal=False)

    torch.manual_seed(3)
    out, without_dropout = attend(), document_attention(q, k, v, lengths, 0.2, causal=False)
    assert torch.equal(out, attend())
    first = out[0, :, :32].detach().float()  # 32 of 40 keys: some columns hold one key, some two
    single = first[..., 8:]
    assert float((single == 0).float().mean()) == pytest.approx(0.25, abs=0.06)
    kept = single != 0
    scaled = without_dropout[0, :, :32, 8:].detach().float() / 0.75
    torch.testing.assert_close(single[kept], scaled[kept], rtol=0.03, atol=1e-3)
    # The output is linear in v, so v's gradient times v is the output; the dropped elements must match.
    up = random(1, 2, 110, 32, dtype=dtype, seed=5)
    grads = torch.autograd.grad(out, [q, k, v], up)
    assert float((grads[2] * v).double().sum()) == pytest.approx(float((out * up).double().sum()), rel=0.02, abs=0.3)
    step = 0.05
    for tensor, grad in ((q, grads[0]), (k, grads[1])):
        direction = random(*tensor.shape, dtype=dtype, seed=7)
        with torch.no_grad():
            change = 0.0
            for sign in (1, -1):
                tensor += sign * step * direction
                change += sign * float((attend() * up).double().sum())
                tensor -= sign * step * direction
        assert change / (2 * step) == pytest.approx(float((grad * direction).double().sum()), rel=0.15, abs=0.5)


@built
def test_nan_stays_nan() -> None:
    """A non-finite loss must stay visible."""
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.tensor([[1.0, float("nan"), 2.0]], dtype=dtype)
        assert rms_norm(x, torch.ones(3, dtype=dtype), 1e-5).isnan().all()
        assert gated(x, torch.ones_like(x), "silu").isnan().tolist() == [[False, True, False]]
        assert linear_cross_entropy(
            torch.ones(1, 1, dtype=dtype), OutputLayer(x.T.contiguous()), torch.tensor([0])
        ).isnan()


def test_without_the_library_pytorch_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(3, 64, dtype=torch.bfloat16)
    native_result = rms_norm(x, torch.ones(64, dtype=torch.bfloat16), 1e-5)
    monkeypatch.setenv("TUNESMITH_NATIVE", "0")
    native.library.cache_clear()
    try:
        assert native.library() is None
        torch.testing.assert_close(
            rms_norm(x, torch.ones(64, dtype=torch.bfloat16), 1e-5), native_result, rtol=0.02, atol=0.02
        )
    finally:
        monkeypatch.undo()
        native.library.cache_clear()


@built
@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's threads from /proc")
def test_ended_workers_are_gone_and_come_back_when_needed() -> None:
    def running() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    numbers = torch.zeros(10**6)
    with threads(3):
        native.end_workers()
        alone = running()
        for _ in range(2):
            numbers.add_(1)
            assert running() == alone + 2
            native.end_workers()
            assert running() == alone
