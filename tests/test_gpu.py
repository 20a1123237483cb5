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
from tunesmith.inference.engine import Engine
from tunesmith.inference.memory import step_bytes
from tunesmith.inference.paged_model import PagedModel, Piece, paged_model
from tunesmith.inference.request import Request
from tunesmith.inference.sampling import Sampling
from tunesmith.objectives.policy_config import PolicyConfig
from tunesmith.ops import cuda
from tunesmith.ops.cross_entropy import OutputLayer, cross_entropy_reference, linear_cross_entropy
from tunesmith.ops.document_attention import document_attention, document_attention_reference
from tunesmith.ops.gated import gated, gated_linear, gated_reference
from tunesmith.ops.lora_linear import LinearParts
from tunesmith.ops.paged_attention import (
    PAGE,
    TILE,
    LayerCache,
    Layout,
    Part,
    paged_attention,
    paged_attention_reference,
)
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


ROLLOUTS = sorted(name for name in OBJECTIVES if issubclass(OBJECTIVES.load(name), PolicyConfig))
"""Objectives that learn from what the model samples."""


@pytest.mark.parametrize("objective", sorted({*OBJECTIVES} - {"seq2seq", *ROLLOUTS}))
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


@pytest.mark.parametrize("objective", ROLLOUTS)
def test_samples_on_the_gpu_come_from_the_weights_in_training(objective: str, tmp_path: Path) -> None:
    make_bases(tmp_path, ["llama"])
    write_data(tmp_path)
    recipe = recipe_of(Cell({"kind": "lora"}, "fp32", "llama", objective), tmp_path)
    run = tunesmith.train({**recipe, "train": {**recipe["train"], "device": "cuda", "steps": 4}}, tmp_path / "run")
    gaps = [event["sampler_gap"] for event in run.events() if "sampler_gap" in event]  # of each phase
    assert len(gaps) >= 2
    assert max(gaps) < 1e-4


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


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim", "window", "softcap", "has_sinks"),
    [
        (8, 2, 128, 128, None, None, False),
        (4, 4, 64, 40, 40, 30.0, True),
        (20, 1, 96, 96, 1, None, False),
        (4, 1, 256, 256, None, 50.0, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [[(1, 200), (1, 0), (1, 15)], [(40, 0), (1, 70), (17, 33)]])
def test_paged_attention_on_the_gpu_equals_the_reference_in_float64(
    parts: list[tuple[int, int]], dtype: torch.dtype, heads: int, kv_heads: int, dim: int, value_dim: int,
    window: int | None, softcap: float | None, has_sinks: bool,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    needed = [-(-(count + position) // PAGE) for count, position in parts]
    order = torch.randperm(sum(needed)).tolist()
    own = [Part(*part, [order.pop() for _ in range(pages)]) for part, pages in zip(parts, needed, strict=True)]
    tokens = sum(count for count, _ in parts)
    q, k, v = (
        torch.randn(1, count, tokens, size, device="cuda", dtype=dtype)
        for count, size in ((heads, dim), (kv_heads, dim), (kv_heads, value_dim))
    )
    cache = LayerCache.empty(sum(needed), k, v)
    for stored in (cache.keys, cache.values):
        stored.normal_()
    wide = LayerCache(cache.keys.cpu().double(), cache.values.cpu().double())
    sinks = torch.randn(heads, device="cuda", dtype=dtype) if has_sinks else None
    assert cuda.has_paged(q, v, cache.keys)
    layout = Layout(own, q.device, TILE)
    ours = paged_attention(q, k, v, cache, layout, 0.1, window, softcap, sinks)
    q, k, v = (tensor.cpu().double() for tensor in (q, k, v))
    wide_sinks = None if sinks is None else sinks.cpu().double()
    exact = paged_attention_reference(q, k, v, wide, Layout(own), 0.1, window, softcap, wide_sinks)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours.cpu().double(), exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(cache.keys.cpu().double(), wide.keys)


def random_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = config_of(family, 64, eos_token_id=None, pad_token_id=None, initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().to("cuda")


def on_the_gpu(model: Any) -> PagedModel:
    paged = paged_model(copy.deepcopy(model))
    assert paged is not None
    return paged


def requests_of(count: int) -> list[Request]:
    prompts = [[3 + number] * (1 + 9 * number % 40) for number in range(count)]
    return [Request(prompt, Sampling(6 + 3 * number), number=number) for number, prompt in enumerate(prompts)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_greedy_answers_on_the_gpu_are_those_of_transformers(family: str, cuda_graphs: bool) -> None:
    model = random_model(family)
    engine = Engine(on_the_gpu(model), prompt_tokens=20, cache_bytes=2**24, cuda_graphs=cuda_graphs)
    requests = requests_of(7)
    engine.run(requests)
    for request in requests:
        prompt = torch.tensor([request.prompt], device="cuda")
        count = request.sampling.max_new_tokens
        own = model.generate(input_ids=prompt, do_sample=False, max_new_tokens=count)
        assert request.tokens == own[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_graph_gives_the_scores_of_the_same_step_without_one(
    family: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = on_the_gpu(random_model(family, dtype))
    engine = Engine(model, cache_bytes=2**24)
    assert engine.graphs is not None
    prompts = [Piece([5 + number] * 30, 0, [2 * number, 2 * number + 1], 30) for number in range(7)]
    for count in (1, 2, 3, 7):
        model.compute(prompts)
        tokens = [Piece([9 + number], 30, [2 * number, 2 * number + 1], 0) for number in range(count)]
        replayed = engine.graphs.logits(tokens, [])
        assert engine.graphs.failure is None
        assert replayed is not None
        torch.testing.assert_close(replayed.clone(), model.compute(tokens), rtol=tolerance, atol=tolerance)


def test_a_step_on_the_gpu_takes_no_more_memory_than_planned() -> None:
    model = on_the_gpu(random_model("llama", torch.bfloat16))
    engine = Engine(model, cache_bytes=2**24)
    engine.run(requests_of(2))
    allocated = sum(own.keys.numel() * 2 + own.values.numel() * 2 for own in model.caches.values())
    assert allocated == (engine.pages.total + 1) * sum(own.bytes_per_page for own in model.caches.values())
    pieces = [Piece([5] * 256, 0, list(range(16)), 0)]
    model.compute(pieces)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model.compute(pieces)
    assert torch.cuda.max_memory_allocated() - before <= step_bytes(model.model, 256)
