"""What a run measures of itself: the heaviest batch first, peaks of memory, and what it may hold."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from tunesmith.data.example import Source
from tunesmith.data.pack import Batch, collate
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
    """A weight, and how often it was read and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0]))
        self.modes: list[bool] = []


def batch_of(*lengths: int) -> Batch:
    rows = [(np.zeros(length, np.int32), np.ones(length, np.bool_), Source("", 1)) for length in lengths]
    return collate(TokenTable.build(rows), range(len(lengths)))


def loss_of(wait: Callable[[int], float]) -> Any:
    """An objective whose loss is w², and which takes as many seconds as it is told at each pass."""

    def loss(model: Counting, batch: Batch) -> torch.Tensor:
        clock.append(clock[-1] + wait(len(model.modes)))
        model.modes.append(model.training)
        torch.rand(3)
        return model.weight.square().sum()

    clock: list[float] = [100.0]
    return SimpleNamespace(loss=loss, clock=clock)


def first(seconds: list[float], monkeypatch: pytest.MonkeyPatch, **left: int) -> tuple[dict[str, Any], Counting]:
    objective, model = loss_of(lambda number: seconds[number]), Counting().eval()
    monkeypatch.setattr("tunesmith.planner.measure.time", SimpleNamespace(perf_counter=lambda: objective.clock[-1]))
    found = largest_batch_first(model, objective, batch_of(30, 20), device=CPU, **left)  # type: ignore[arg-type]
    return found, model


@pytest.mark.parametrize(
    ("seconds", "passes", "taken"),
    [
        pytest.param([0.5, 0.2], 2, 0.2, id="a short pass is timed once more"),
        pytest.param([0.2, 0.5], 2, 0.2, id="the faster of both counts"),
        pytest.param([2.0], 1, 2.0, id="a long one is timed once"),
    ],
)
def test_the_heaviest_batch_tells_what_is_left_of_the_run(
    seconds: list[float], passes: int, taken: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, model = first(seconds, monkeypatch, tokens_left=4_000, steps_left=16)
    per_token = taken / 50
    assert found["seconds_per_step"] == pytest.approx(per_token * 4_000 / 16, rel=1e-9)
    assert found["tokens_per_second"] == pytest.approx(1 / per_token, rel=1e-9)
    assert found["total_seconds"] == pytest.approx(per_token * 4_000, rel=1e-9)
    assert model.modes == [True] * passes
    assert model.weight.grad is not None
    assert model.weight.grad.item() == passes * 6.0  # gradients of w² are left there


def test_no_steps_left_are_no_division_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = first([2.5], monkeypatch, tokens_left=0, steps_left=0)
    assert (found["seconds_per_step"], found["total_seconds"]) == (0.0, 0.0)


def test_random_numbers_go_on_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    first([0.1, 0.1], monkeypatch, tokens_left=10, steps_left=1)
    assert torch.equal(torch.rand(4), expected)


def test_what_was_measured_has_the_shape_of_a_plan() -> None:
    found = measured(seconds=12.5, steps=50, tokens=4_000, device=CPU)
    assert found["time"] == {"seconds_per_step": 0.25, "tokens_per_second": 320.0, "total_seconds": 12.5}
    assert found["memory"]["peak_bytes"] == sum(found["memory"]["parts"].values())
    assert (found["fits"], found["device"]) == (True, "cpu")
    nothing = measured(seconds=0.0, steps=0, tokens=0, device=CPU)["time"]
    assert nothing == {"seconds_per_step": 0.0, "tokens_per_second": 0.0, "total_seconds": 0.0}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are forgotten on Linux alone")
def test_the_peak_is_the_processs_most_and_can_be_forgotten() -> None:
    forget_peak(CPU)
    ballast = np.ones(2**27, np.uint8)  # 128 MiB
    held = psutil.Process().memory_info().rss
    assert int(ballast[-1]) == 1
    del ballast
    most = peak_memory(CPU)
    assert measured_parts(CPU) == {"resident": most}
    assert most == pytest.approx(held, rel=0.02)
    forget_peak(CPU)
    now = psutil.Process().memory_info().rss
    assert peak_memory(CPU) == pytest.approx(now, rel=0.05)
    assert peak_memory(CPU) < most - 100 * 2**20


def test_what_may_be_held_is_what_is_free_and_held_already_within_the_control_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    told = [int(file.read_text()) for file in limits if file.exists() and file.read_text().strip().isdigit()]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**18))
    assert available_memory(CPU) == min([10**18 + psutil.Process().memory_info().rss, *told]) or not told
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000))
    held = psutil.Process().memory_info().rss
    assert available_memory(CPU) == pytest.approx(1_000_000 + held, rel=0.02)
