"""On CUDA only: GPU operations against their reference definitions, 8-bit and paged optimizers."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of
from matrix import Cell, make_bases, recipe_of, write_data
from transformers import AutoModelForCausalLM

import tunesmith
from tunesmith.config.registry import OBJECTIVES
from tunesmith.inference.engine import Engine, Request
from tunesmith.inference.paged_model import paged_model
from tunesmith.inference.sampling import Sampling
from tunesmith.ops.cross_entropy import OutputLayer, cross_entropy_reference, linear_cross_entropy
from tunesmith.ops.document_attention import document_attention, document_attention_reference
from tunesmith.ops.gated import gated, gated_linear, gated_reference
from tunesmith.ops.lora_linear import LinearParts
from tunesmith.ops.quantized import dequantize, dequantize_reference, quantize, quantized_linear
from tunesmith.ops.rms_norm import rms_norm, rms_norm_reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.mark.parametrize(("format", "double"), [("nf4", False), ("nf4", True), ("fp4", True), ("int8", False)])
@pytest.mark.parametrize("shape", [(64, 96), (256, 1024), (33, 70)])
def test_a_weight_quantized_on_the_cpu_is_the_same_on_the_gpu(format: Any, double: bool, shape: Any) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    on_cpu = quantize(weight, format, double)
    on_gpu = on_cpu.to(torch.device("cuda"))
    torch.testing.assert_close(
        dequantize(on_gpu, torch.float32).cpu(), dequantize_reference(on_cpu, torch.float32), rtol=1e-5, atol=1e-5
    )
    x = torch.randn(5, shape[1], device="cuda", requires_grad=True)
    out = quantized_linear(x, on_gpu, None)
    expected = x @ dequantize(on_gpu, torch.float32).T
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    seed = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(output, x, seed)[0] for output in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_qlora_learns_and_resumes_with_every_optimizer(
    optimizer: str, tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] == 10:
            raise KilledError

    recipe = {
        "base": {"path": str(tiny_model), "weights": "nf4"},
        "data": {"train": str(write_rows()), "held_out": 0.2},
        "method": {"kind": "lora", "rank": 4},
        "train": {
            "steps": 20,
            "tokens_per_step": 512,
            "optimizer": optimizer,
            "device": "cuda",
            "checkpoint_every": 10,
        },
    }
    with pytest.raises(KilledError):
        tunesmith.train(recipe, tmp_path / "run", subscribers=[kill])
    run = tunesmith.resume(tmp_path / "run")
    losses = [event["loss"] for event in run.events() if event["event"] == "evaluation"]
    assert losses[-1] < losses[0] - 0.1


def assert_equal_to_reference(
    fast: Callable[..., Any], reference: Callable[..., Any], inputs: list[torch.Tensor], slack: float = 6
) -> None:
    """Compare values and gradients in bf16 on the GPU with float64 on the CPU."""
    ours = [x.to("cuda", torch.bfloat16).requires_grad_() for x in inputs]
    exact = [x.detach().cpu().double().requires_grad_() for x in ours]
    out, expected = fast(*ours), reference(*exact)
    up = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    grads = torch.autograd.grad(out, ours, up.to("cuda", out.dtype))
    exact_grads = torch.autograd.grad(expected, exact, up.double())
    for actual, right in zip((out, *grads), (expected, *exact_grads), strict=True):
        atol = slack * 2**-8 * max(1e-3, float(right.detach().abs().max()))
        torch.testing.assert_close(actual.detach().cpu().double(), right.detach(), rtol=slack * 2**-8, atol=atol)


def test_rms_norm_on_the_gpu_matches_its_reference() -> None:
    assert_equal_to_reference(
        lambda x, w: rms_norm(x, w, 1e-5),
        lambda x, w: rms_norm_reference_in_double(x, w),
        [torch.randn(3, 70, 256), torch.randn(256)],
    )


def rms_norm_reference_in_double(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rms_norm_reference(x, weight, 1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_layers_on_the_gpu_match_their_reference(activation: Any) -> None:
    gate, up, weight = torch.randn(2, 33, 128), torch.randn(2, 33, 128), torch.randn(64, 128) / 11
    assert_equal_to_reference(
        lambda g, u: gated(g, u, activation), lambda g, u: gated_reference(g, u, activation), [gate, up]
    )
    assert_equal_to_reference(
        lambda g, u, w: gated_linear(g, u, activation, LinearParts(w)),
        lambda g, u, w: gated_reference(g, u, activation) @ w.T,
        [gate, up, weight],
    )


def test_cross_entropy_on_the_gpu_matches_its_reference() -> None:
    labels = torch.randint(1000, (300,))
    assert_equal_to_reference(
        lambda h, w: linear_cross_entropy(h, OutputLayer(w), labels.to(h.device)).to(torch.float32),
        lambda h, w: cross_entropy_reference(h, OutputLayer(w), labels),
        [torch.randn(300, 64), torch.randn(1000, 64) / 8],
        slack=12,
    )


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 7), (False, None)])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_document_attention_on_the_gpu_matches_masked_attention(
    kv_heads: int, causal: bool, window: int | None, prefix: int
) -> None:
    lengths = [5, 70, 1, 33]
    inputs = [torch.randn(1, heads, sum(lengths), 64) for heads in (4, kv_heads, kv_heads)]
    inputs += [torch.randn(1, kv_heads, prefix, 64) for _ in range(2)] if prefix else []
    window = None if prefix else window

    def fast(*tensors: torch.Tensor) -> torch.Tensor:
        q, k, v, *before = tensors
        return document_attention(q, k, v, lengths, 0.125, window, causal=causal, prefix=tuple(before) or None)

    def reference(*tensors: torch.Tensor) -> torch.Tensor:
        q, k, v, *before = tensors
        return document_attention_reference(q, k, v, lengths, 0.125, window, causal, tuple(before) or None)

    assert_equal_to_reference(fast, reference, inputs)


def test_offloading_activations_does_not_change_the_losses(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    def losses(offload: bool) -> list[float]:
        recipe = {
            "base": str(tiny_model),
            "data": {"train": str(write_rows()), "held_out": 0.0},
            "train": {"steps": 3, "tokens_per_step": 512, "device": "cuda", "offload_activations": offload},
        }
        run = tunesmith.train(recipe, tmp_path / f"run-{offload}")
        return [event["loss"] for event in run.events() if event["event"] == "step"]

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "seq2seq"])
def test_every_objective_has_the_same_losses_on_gpu_and_cpu(objective: str, tmp_path: Path) -> None:
    family = "bert" if objective == "token_classification" else "llama"
    make_bases(tmp_path, [family])
    write_data(tmp_path)
    recipe = recipe_of(Cell({"kind": "lora"}, "fp32", family, objective), tmp_path)
    losses = []
    for device in ("cpu", "cuda"):
        on_device = {**recipe, "train": {**recipe["train"], "device": device, "steps": 4}}
        run = tunesmith.train(on_device, tmp_path / device)
        losses.append([event["loss"] for event in run.events() if event["event"] == "evaluation"])
        tunesmith.evaluate(run.directory, rows=2, max_new_tokens=4)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_the_generation_engine_answers_on_the_gpu_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    config = config_of("llama", 64, eos_token_id=None, pad_token_id=None, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).eval()
    answers = []
    for device in ("cpu", "cuda"):
        paged = paged_model(copy.deepcopy(model).to(device))
        assert paged is not None
        engine = Engine(paged, prompt_tokens=20, cache_bytes=2**24)
        sampled = Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9, seed=3)
        requests = [
            Request([number + 5] * 30, sampled if number % 2 else Sampling(8), number=number) for number in range(6)
        ]
        engine.run(requests)
        answers.append(requests)
    for on_cpu, on_gpu in zip(*answers, strict=True):
        assert on_gpu.tokens == on_cpu.tokens
        assert on_gpu.log_probabilities == pytest.approx(on_cpu.log_probabilities, abs=1e-4)
