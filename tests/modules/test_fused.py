"""Fused parts of a model: which parts are replaced, that they compute the same, and what they store for gradients."""

from inspect import unwrap
from typing import Any

import pytest
import torch
from small_models import batch_of, method_of, small_model
from torch import Tensor, nn
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tunesmith.models.forward import next_token_losses
from tunesmith.modules.fused import (
    ROTARY,
    FusedDropout,
    FusedRMSNorm,
    use_fused_dropout,
    use_fused_feed_forwards,
    use_fused_norms,
    use_fused_ops,
)
from tunesmith.ops.lora_linear import lora_linear

FP32 = torch.float32


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "olmo2"])
def test_a_model_of_fused_parts_has_the_losses_of_its_own_parts(family: str) -> None:
    model = small_model(family, dtype=FP32)
    own = next_token_losses(model, batch_of())
    use_fused_ops(model)
    torch.testing.assert_close(next_token_losses(model, batch_of()), own, rtol=1e-5, atol=1e-5)


def test_norms_feed_forwards_dropout_and_rotary_embeddings_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, ROTARY, unwrap(modeling_llama.apply_rotary_pos_emb))
    model = small_model("llama", dtype=FP32)
    model.model.layers[0].dropout = nn.Dropout(0.5)
    use_fused_ops(model)
    assert sum(isinstance(module, FusedRMSNorm) for module in model.modules()) == 7
    assert all("forward" in vars(layer.mlp) for layer in model.model.layers)
    assert isinstance(model.model.layers[0].dropout, FusedDropout)
    assert hasattr(modeling_llama.apply_rotary_pos_emb, "__wrapped__")


# Norms


class TimesRMSNorm(LlamaRMSNorm):
    """A norm whose output differs by a factor."""

    factor = 1.0

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * self.factor


@pytest.mark.parametrize(("factor", "replaced"), [(1.0, 1), (1.001, 0), (0.999, 0), (1.5, 0)])
def test_a_norm_is_replaced_only_if_its_output_is_the_same(factor: float, replaced: int) -> None:
    norm = TimesRMSNorm(32, eps=1e-5)
    norm.factor = factor
    nn.init.normal_(norm.weight)
    body: Any = nn.Sequential(nn.Linear(32, 32), norm)
    x = torch.randn(5, 32)
    before = body(x)
    assert use_fused_norms(body) == replaced
    assert isinstance(body[1], FusedRMSNorm) == bool(replaced)
    assert body[1].weight is norm.weight
    torch.testing.assert_close(body(x), before)


def test_norms_are_replaced_by_family() -> None:
    """Gemma's norm multiplies by 1 + w, and BERT's subtracts the mean, too."""
    assert use_fused_norms(small_model("llama", dtype=FP32)) == 7
    for family in ("gemma2", "bert"):
        assert use_fused_norms(small_model(family, dtype=FP32)) == 0


def test_a_lora_layer_recomputes_the_fused_norm_that_it_reads() -> None:
    torch.manual_seed(0)
    norm = FusedRMSNorm(nn.Parameter(torch.randn(12)), 1e-5)
    x, weight = torch.randn(7, 12, requires_grad=True), torch.randn(9, 12)
    a, b = torch.randn(2, 12, requires_grad=True), torch.randn(9, 2, requires_grad=True)
    stored: list[int] = []

    def gradients(read: Tensor) -> tuple[Tensor, ...]:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t.data_ptr()) or t, lambda t: t):
            out = lora_linear(read, weight, None, a, b, 0.5)
        return torch.autograd.grad(out.square().sum(), [x, norm.weight, a, b])

    read = norm(x)
    recomputed = gradients(read)
    assert read.data_ptr() not in stored
    same = norm(x) * 1.0
    torch.testing.assert_close(recomputed, gradients(same))
    assert same.data_ptr() in stored


# Dropout


def test_every_dropout_is_replaced_and_drops_only_in_training() -> None:
    body: Any = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), nn.Identity(), nn.AlphaDropout(0.5))
    assert use_fused_dropout(body) == 1
    assert [type(layer) for layer in body] == [FusedDropout, nn.Dropout, nn.Identity, nn.AlphaDropout]
    x = torch.ones(100, 100)
    assert set(body[0].train()(x).unique().tolist()) == {0.0, 2.0}
    assert body[0].eval()(x) is x


# Gated feed-forwards


def fused_in(module: Any) -> int:
    """How many gated feed-forwards a body of this module has."""
    body: Any = nn.Sequential(module)
    return use_fused_feed_forwards(body)


class Gated(nn.Module):
    """down(act(gate(x)) · up(x)), with the names of some family."""

    def __init__(self, act: nn.Module, dtype: torch.dtype = FP32, size: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w2, self.w1, self.w3 = nn.Linear(20, size), nn.Linear(size, 20), nn.Linear(size, 20)
        self.act = act
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.act(self.w1(x)) * self.w3(x))


@pytest.mark.parametrize(
    ("act", "fused"),
    [
        (nn.SiLU(), 1),
        (nn.GELU(approximate="tanh"), 1),
        (nn.GELU(), 0),
        (nn.ReLU(), 0),
        (nn.Sigmoid(), 0),
        (nn.PReLU(), 0),
    ],
    ids=str,
)
def test_a_gated_feed_forward_is_fused_only_with_the_activation_that_it_has(act: nn.Module, fused: int) -> None:
    module = Gated(act)
    x = torch.randn(5, 12)
    before = module(x)
    assert fused_in(module) == fused
    assert ("forward" in vars(module)) == bool(fused)
    torch.testing.assert_close(module(x), before)


def test_layers_are_distinguished_by_what_they_compute_also_if_all_have_one_size() -> None:
    module = Gated(nn.SiLU(), size=20)
    x = torch.randn(5, 20)
    before = module(x)
    assert fused_in(module) == 1
    torch.testing.assert_close(module(x), before)


def test_modules_of_another_shape_are_no_gated_feed_forwards() -> None:
    class Sum(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return self.w2(self.act(self.w1(x)) + self.w3(x))

    class Takes(Gated):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) + other

    two = nn.ModuleDict({"up": nn.Linear(4, 8), "act": nn.SiLU(), "down": nn.Linear(8, 4)})
    for module in (Sum(nn.SiLU()), Takes(nn.SiLU()), two):
        assert fused_in(module) == 0


def stored_for_backward(feed_forward: Any, x: Tensor) -> list[tuple[int, ...]]:
    """The shapes of the activations of (tokens, inner) that a pass stores, each counted once."""
    stored: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        stored[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        feed_forward(x)
    weights = {parameter.data_ptr() for parameter in feed_forward.parameters()}
    return [tuple(each.shape) for at, each in stored.items() if at not in weights and each.shape[-1] == 48]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_fused_feed_forward_stores_only_gate_and_up(kind: str) -> None:
    counts = []
    for fuse in (False, True):
        model = small_model("llama", dtype=FP32)
        if fuse:
            assert use_fused_feed_forwards(model) == 3
        trained = method_of(kind).apply(model, seed=0)
        x = torch.randn(1, 7, 32, requires_grad=True)
        blocks = (trained.get_base_model() if kind == "lora" else trained).model.layers
        counts.append(stored_for_backward(blocks[0].mlp, x))
    own, fused = counts
    assert fused == [(1, 7, 48)] * 2
    assert len(own) > 2
