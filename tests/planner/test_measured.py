"""A run's own measurements: its largest batch first, peak memory, and available memory."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from tunesmith.data.batch import Batch, collate
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable
from tunesmith.planner.measure import (
    available_memory,
    forget_peak,
    largest_batch_first,
    measured,
    measured_parts,
    peak_memory,
)

CPU = torch.device("cpu")


class Counting(nn.Module):
    """One weight; records the mode of each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0]))
        self.modes: list[bool] = []


def batch_of(*lengths: int) -> Batch:
    rows = [(np.zeros(length, np.int32), np.ones(length, np.bool_), Source("", 1)) for length in lengths]
    return collate(TokenTable.build(rows), range(len(lengths)))


def loss_of(wait: Callable[[int], float]) -> Any:
    """An objective whose loss is w² and whose passes take the given seconds."""

    def loss(model: Counting, batch: Batch) -> torch.Tensor:
        times.append(times[-1] + wait(len(model.modes)))
        model.modes.append(model.training)
        torch.rand(3)
        return model.weight.square().sum()

    times: list[float] = [100.0]
    return SimpleNamespace(loss=loss, losses=loss, times=times)


def measure_first(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[float, float], Counting]:
    objective, model = loss_of(lambda number: seconds[number]), Counting().eval()
    monkeypatch.setattr("tunesmith.planner.measure.time", SimpleNamespace(perf_counter=lambda: objective.times[-1]))
    per_token = largest_batch_first(model, objective, batch_of(30, 20), CPU)  # type: ignore[arg-type]
    return per_token, model


@pytest.mark.parametrize(
    ("training", "evaluating"),
    [
        pytest.param([0.7, 0.6, 0.5, 0.4], [0.9, 0.8, 0.7], id="until they have taken two seconds"),
        pytest.param([0.3, 0.1, 0.2, 0.1, 0.3], [0.1, 0.1, 0.02, 0.1, 0.1], id="five short passes"),
        pytest.param([1.9, 0.2], [0.4, 1.9], id="a first pass that is slow on a busy machine"),
        pytest.param([2.0], [2.0], id="a long pass is timed once"),
    ],
)
def test_the_largest_batch_is_timed_by_the_fastest_of_a_few_passes(
    training: list[float], evaluating: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    per_token, model = measure_first([*training, *evaluating], monkeypatch)
    assert per_token == pytest.approx((min(training) / 50, min(evaluating) / 50), rel=1e-9)
    assert model.modes == [True] * len(training) + [False] * len(evaluating)
    assert model.weight.grad is not None
    assert model.weight.grad.item() == len(training) * 6.0  # gradients of w² stay there


def test_the_random_state_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    measure_first([0.1] * 10, monkeypatch)
    assert torch.equal(torch.rand(4), expected)


def test_measurements_have_the_format_of_a_plan() -> None:
    parts = {"start": 1.0, "training": 12.5, "evaluation": 2.0, "checkpoints": 0.5}
    result = measured(parts, steps=50, tokens=4_000, device=CPU)
    time = {"seconds_per_step": 0.25, "tokens_per_second": 320.0, "total_seconds": 16.0}
    assert result["time"] == {**time, "parts": parts}
    assert result["memory"]["peak_bytes"] == sum(result["memory"]["parts"].values())
    assert (result["fits"], result["device"]) == (True, "cpu")
    nothing = measured(dict.fromkeys(parts, 0.0), steps=0, tokens=0, device=CPU)["time"]
    assert (nothing["seconds_per_step"], nothing["tokens_per_second"], nothing["total_seconds"]) == (0.0, 0.0, 0.0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak can only be reset on Linux")
def test_the_peak_is_the_processs_resident_peak_and_can_be_reset() -> None:
    forget_peak(CPU)
    ballast = np.ones(2**27, np.uint8)  # 128 MiB
    held = psutil.Process().memory_info().rss
    assert int(ballast[-1]) == 1
    del ballast
    peak = peak_memory(CPU)
    assert measured_parts(CPU) == {"resident": peak}
    assert peak == pytest.approx(held, rel=0.02)
    forget_peak(CPU)
    now = psutil.Process().memory_info().rss
    assert peak_memory(CPU) == pytest.approx(now, rel=0.05)
    assert peak_memory(CPU) < peak - 100 * 2**20


def test_available_memory_is_free_plus_own_memory_within_the_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    cgroup = [int(file.read_text()) for file in limits if file.exists() and file.read_text().strip().isdigit()]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**18))
    assert available_memory(CPU) == min([10**18 + psutil.Process().memory_info().rss, *cgroup]) or not cgroup
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000))
    held = psutil.Process().memory_info().rss
    assert available_memory(CPU) == pytest.approx(1_000_000 + held, rel=0.02)
