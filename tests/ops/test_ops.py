"""Every fast operation equals its plain reference: values and gradients, in float64, on random shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.ops import cross_entropy
from tunesmith.ops.cross_entropy import OutputLayer, cross_entropy_reference, linear_cross_entropy, row_losses
from tunesmith.ops.document_attention import document_attention, document_attention_reference
from tunesmith.ops.gated import Activation, gated, gated_linear, gated_reference
from tunesmith.ops.lora_linear import LinearParts, MadeFrom, lora_linear, lora_linear_reference, lora_linears
from tunesmith.ops.rms_norm import rms_norm, rms_norm_reference
from tunesmith.ops.rotary import rotary, rotary_reference

few = settings(max_examples=25)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).requires_grad_()


def assert_same(ours: Tensor, reference: Tensor, inputs: list[Tensor], tolerance: float = 1e-9) -> None:
    """Equal values, and equal gradients of a random weighting of them."""
    torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)
    up = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for grad, expected in zip(
        torch.autograd.grad(ours, inputs, up, materialize_grads=True, allow_unused=True),
        torch.autograd.grad(reference, inputs, up, materialize_grads=True, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(grad, expected, rtol=tolerance, atol=tolerance)


@few
@given(rows=st.integers(1, 64), hidden=st.sampled_from([1, 7, 64, 768]), eps=st.sampled_from([1e-6, 1e-2]))
def test_rms_norm_and_its_gradient_equal_the_reference(rows: int, hidden: int, eps: float) -> None:
    x, weight = random(2, rows, hidden), random(hidden, seed=3)
    assert_same(rms_norm(x, weight, eps), rms_norm_reference(x, weight, eps), [x, weight])


@few
@given(
    rows=st.integers(1, 40),
    inner=st.sampled_from([1, 8, 33]),
    outer=st.sampled_from([1, 12, 50]),
    rank=st.integers(1, 9),
    bias=st.booleans(),
)
def test_lora_linear_and_its_gradient_equal_the_reference(
    rows: int, inner: int, outer: int, rank: int, bias: bool
) -> None:
    x, weight = random(1, rows, inner), random(outer, inner, seed=1).detach()
    a, b = random(rank, inner, seed=2), random(outer, rank, seed=3)
    b0 = random(outer, seed=4).detach() if bias else None
    assert_same(lora_linear(x, weight, b0, a, b, 0.7), lora_linear_reference(x, weight, b0, a, b, 0.7), [x, a, b])


@few
@given(
    tokens=st.integers(1, 20),
    outs=st.lists(st.sampled_from([1, 12]), min_size=1, max_size=3),
    ranks=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    recompute=st.booleans(),
)
def test_layers_that_share_an_input_equal_single_layers(
    tokens: int, outs: list[int], ranks: list[int], recompute: bool
) -> None:
    source = random(tokens, 8)
    weights = [random(out, 8, seed=layer).detach() for layer, out in enumerate(outs)]
    low = [
        (random(rank, 8, seed=10 + layer), random(out, rank, seed=20 + layer))
        for layer, (out, rank) in enumerate(zip(outs, ranks, strict=False))
    ]
    x = source * 2
    if recompute:
        x.made_from = MadeFrom(lambda tensor: tensor.detach() * 2, (source,))  # type: ignore[attr-defined]
    parts = [LinearParts(w, None, a, b, 0.7) for w, (a, b) in zip(weights, low, strict=True)]
    ours = torch.cat(lora_linears(x, parts), -1)
    reference = [lora_linear_reference(source * 2, w, None, a, b, 0.7) for w, (a, b) in zip(weights, low, strict=True)]
    assert_same(ours, torch.cat(reference, -1), [source, *(tensor for pair in low for tensor in pair)])


def test_lora_linear_stores_only_its_input_its_parameters_and_x_a() -> None:
    saved: list[Tensor] = []
    x, weight, a, b = random(5, 8), random(6, 8).detach(), random(2, 8), random(6, 2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        lora_linear(x, weight, None, a, b, 1.0)
    others = [t for t in saved if id(t) not in {id(tensor) for tensor in (x, weight, a, b)}]
    assert [tuple(t.shape) for t in others] == [(5, 2)]


def test_input_that_can_be_recomputed_is_not_stored() -> None:
    saved: list[Tensor] = []
    source, weight, a, b = random(5, 8), random(6, 8).detach(), random(2, 8), random(6, 2)
    x = source.detach() * 2
    x.made_from = MadeFrom(lambda tensor: tensor * 2, (source,))  # type: ignore[attr-defined]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        lora_linears(x, [LinearParts(weight, None, a, b)])
    assert x.data_ptr() not in {t.data_ptr() for t in saved}


def test_layer_without_lora_is_refused_among_layers_with_lora() -> None:
    a, b = torch.ones(1, 3), torch.ones(2, 1)
    x, weight = torch.ones(1, 3), torch.ones(2, 3)
    for incomplete in (LinearParts(weight), LinearParts(weight, None, a, None), LinearParts(weight, None, None, b)):
        with pytest.raises(ValueError, match="without A and B"):
            lora_linears(x, [LinearParts(weight, None, a, b), incomplete])


def test_lora_linear_has_no_input_gradient_if_the_input_needs_none() -> None:
    x, weight, a, b = random(5, 8).detach(), random(6, 8).detach(), random(2, 8), random(6, 2)
    y = lora_linear(x, weight, None, a, b, 1.0)
    assert y.grad_fn is not None
    ((function, _),) = y.grad_fn.next_functions  # the function before the final view
    assert function.next_functions[0][0] is None


@few
@given(rows=st.integers(1, 20), inner=st.sampled_from([1, 9, 64]), activation=st.sampled_from(["silu", "gelu_tanh"]))
def test_gated_and_its_gradient_equal_the_reference(rows: int, inner: int, activation: Activation) -> None:
    gate, up = random(2, rows, inner), random(2, rows, inner, seed=1)
    assert_same(gated(gate, up, activation), gated_reference(gate, up, activation), [gate, up])


@few
@given(
    rows=st.integers(1, 20),
    inner=st.sampled_from([1, 9, 64]),
    rank=st.sampled_from([0, 3]),
    bias=st.booleans(),
    trained=st.booleans(),
)
def test_gated_linear_and_its_gradient_equal_the_reference(
    rows: int, inner: int, rank: int, bias: bool, trained: bool
) -> None:
    gate, up, weight = random(1, rows, inner), random(1, rows, inner, seed=1), random(7, inner, seed=2)
    weight = weight if trained else weight.detach()
    b0 = random(7, seed=3) if bias else None
    a, b = (random(rank, inner, seed=4), random(7, rank, seed=5)) if rank else (None, None)
    x = gated_reference(gate, up, "silu")
    expected = torch.nn.functional.linear(x, weight, b0)
    if a is not None and b is not None:
        expected = lora_linear_reference(x, weight, b0, a, b, 0.7)
    ours = gated_linear(gate, up, "silu", LinearParts(weight, b0, a, b, 0.7))
    inputs = [tensor for tensor in (gate, up, weight, b0, a, b) if tensor is not None and tensor.requires_grad]
    assert_same(ours, expected, inputs)


@few
@given(tokens=st.integers(1, 9), heads=st.integers(1, 3), half=st.sampled_from([1, 4, 16]))
def test_rotary_embedding_and_its_gradient_equal_the_reference(tokens: int, heads: int, half: int) -> None:
    x = random(1, heads, tokens, 2 * half)
    angles = torch.rand(1, tokens, half, dtype=torch.float64)
    cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    assert_same(rotary(x, cos, sin), rotary_reference(x, cos, sin), [x])


@few
@given(
    rows=st.integers(1, 150),
    hidden=st.sampled_from([1, 5, 16]),
    vocab=st.sampled_from([2, 11, 100]),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25]),
    softcap=st.sampled_from([None, 3.0]),
    chunk=st.integers(1, 100),
    smoothing=st.sampled_from([0.0, 0.1]),
    z_loss=st.sampled_from([0.0, 0.01]),
)
def test_chunked_cross_entropy_and_its_gradient_equal_the_reference(
    rows: int,
    hidden: int,
    vocab: int,
    bias: bool,
    scale: float,
    softcap: float | None,
    chunk: int,
    smoothing: float,
    z_loss: float,
) -> None:
    h, weight = random(rows, hidden), random(vocab, hidden, seed=1)
    b = random(vocab, seed=2) if bias else None
    labels = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(rows))
    head = OutputLayer(weight, b, scale, softcap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CHUNK_BYTES", 8 * vocab * chunk)
        patch.setattr(cross_entropy, "CHUNK_ROWS", cross_entropy.ROWS)
        ours = linear_cross_entropy(h, head, labels, smoothing, z_loss)
        per_row = row_losses(h, head, labels)
    inputs = [h, weight] if b is None else [h, weight, b]
    assert_same(ours, cross_entropy_reference(h, head, labels, smoothing, z_loss), inputs)
    torch.testing.assert_close(per_row.sum(), cross_entropy_reference(h, head, labels).detach())


def test_the_sum_of_losses_of_rounded_states_is_wide() -> None:
    hidden, weight = torch.randn(600, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    labels = torch.randint(0, 50, (600,))
    loss = linear_cross_entropy(hidden, OutputLayer(weight), labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, row_losses(hidden, OutputLayer(weight), labels).sum(), rtol=1e-5, atol=1e-3)


def test_cross_entropy_never_holds_the_full_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, hidden, vocab = 250, 4, 50
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 8 * vocab * 64)
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", cross_entropy.ROWS)
    shapes: list[int] = []
    original = cross_entropy.logits_of

    def record(*args: object) -> Tensor:
        out = original(*args)  # type: ignore[arg-type]
        shapes.append(out.shape[0])
        return out

    monkeypatch.setattr(cross_entropy, "logits_of", record)
    linear_cross_entropy(random(rows, hidden), OutputLayer(random(vocab, hidden)), torch.zeros(rows, dtype=torch.int64))
    assert shapes == [64] * 4


@few
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    kv_heads=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 3]),
    window=st.sampled_from([None, 1, 4]),
    causal=st.booleans(),
    before=st.sampled_from([0, 1, 5]),
    softcap=st.sampled_from([None, 0.7]),
    with_sinks=st.booleans(),
)
def test_document_attention_and_its_gradient_equal_masked_attention(
    lengths: list[int],
    kv_heads: int,
    groups: int,
    window: int | None,
    causal: bool,
    before: int,
    softcap: float | None,
    with_sinks: bool,
) -> None:
    tokens = sum(lengths)
    q = random(1, kv_heads * groups, tokens, 8)
    k, v = random(1, kv_heads, tokens, 8, seed=1), random(1, kv_heads, tokens, 8, seed=2)
    prefix = (random(1, kv_heads, before, 8, seed=3), random(1, kv_heads, before, 8, seed=4)) if before else None
    sinks = random(kv_heads * groups, seed=5) if with_sinks else None
    assert_same(
        document_attention(q, k, v, lengths, 0.3, window, 0.0, causal, prefix, softcap, sinks),
        document_attention_reference(q, k, v, lengths, 0.3, window, causal, prefix, softcap, sinks),
        [q, k, v, *(prefix or ()), *([] if sinks is None else [sinks])],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_document_attention_takes_tensors_in_any_memory_layout(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = {each: torch.randn(1, 2, 7, 64, generator=generator).to(dtype) for each in ("q", "k", "v")}
    apart = {**tensors, name: tensors[name].transpose(2, 3).contiguous().transpose(2, 3)}
    assert apart[name].stride(3) != 1
    found = document_attention(**apart, lengths=[4, 3], scale=0.1)
    torch.testing.assert_close(found, document_attention(**tensors, lengths=[4, 3], scale=0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_input_gradients_do_not_depend_on_the_memory_layout_of_the_outputs_gradient(dtype: torch.dtype) -> None:
    inputs = [random(1, 2, 7, 64, seed=each).detach().to(dtype).requires_grad_() for each in range(3)]
    up = random(1, 2, 7, 64, seed=3).detach().to(dtype)
    apart = up.transpose(2, 3).contiguous().transpose(2, 3)
    assert apart.stride(3) != 1

    def gradients(up: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(document_attention(*inputs, lengths=[4, 3], scale=0.1), inputs, up)

    torch.testing.assert_close(gradients(apart), gradients(up))
    same = up[..., :1].expand_as(up)
    torch.testing.assert_close(gradients(same), gradients(same.contiguous()))
