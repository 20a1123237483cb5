"""What is CUDA's alone: bitsandbytes' kernels on the device, and its 8-bit and paged optimisers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tunesmith.ops.quantised import dequantise, dequantise_reference, quantise, quantised_linear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.mark.parametrize(("form", "double"), [("nf4", False), ("nf4", True), ("fp4", True), ("int8", False)])
@pytest.mark.parametrize("shape", [(64, 96), (256, 1024), (33, 70)])
def test_a_weight_quantised_on_the_processor_is_the_same_on_the_gpu(form: Any, double: bool, shape: Any) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    held = quantise(weight, form, double)
    there = held.to(torch.device("cuda"))
    torch.testing.assert_close(
        dequantise(there, torch.float32).cpu(), dequantise_reference(held, torch.float32), rtol=1e-5, atol=1e-5
    )
    x = torch.randn(5, shape[1], device="cuda", requires_grad=True)
    out = quantised_linear(x, there, None)
    expected = x @ dequantise(there, torch.float32).T
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    seed = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(each, x, seed)[0] for each in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("optimiser", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_qlora_learns_and_resumes_with_every_optimiser(
    optimiser: str, tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
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
            "optimiser": optimiser,
            "device": "cuda",
            "checkpoint_every": 10,
        },
    }
    with pytest.raises(KilledError):
        tunesmith.train(recipe, tmp_path / "run", subscribers=[kill])
    run = tunesmith.resume(tmp_path / "run")
    losses = [event["loss"] for event in run.events() if event["event"] == "evaluation"]
    assert losses[-1] < losses[0] - 0.1
