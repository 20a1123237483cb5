"""The quick fake mode makes of every operation what PyTorch's own does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import make_bases

from tunesmith.engine.workload import Workload
from tunesmith.models import fake_mode
from tunesmith.planner.device import device_named
from tunesmith.planner.plan import plan_run
from tunesmith.planner.step import Step, rows_like
from tunesmith.recipe import Recipe

FAMILIES = ("llama", "gpt2", "gemma3_text", "mixtral", "falcon", "granitemoehybrid")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    make_bases(folder, FAMILIES)
    return folder


def step(base: Path, method: str, weights: str) -> Step:
    given: dict[str, Any] = {"base": {"path": str(base), "weights": weights}, "data": {"train": "rows.jsonl"}}
    recipe = Recipe.model_validate(given | {"method": method})
    workload = Workload.of(recipe, rows_like(recipe, [240, 144, 384]))
    return plan_run(workload, torch.bfloat16, device_named("here")).step


@pytest.mark.parametrize(("method", "weights"), [("lora", "nf4"), ("full", "auto")])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_to_the_byte_and_the_operation_what_pytorchs_own_mode_says(
    family: str, method: str, weights: str, bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = step(bases / family, method, weights)
    assert {fake_mode._kind(each) for each in (torch.ops.aten.mm.default, torch.ops.aten.t.default)} == {
        "maker",
        "view",
    }
    monkeypatch.setattr(fake_mode, "_kind", lambda _: "unusual")
    assert quick == step(bases / family, method, weights)


def test_numbers_that_are_equal_and_of_other_types_are_told_apart() -> None:
    with fake_mode.QuickFakeMode():
        whole = torch.ones(3, dtype=torch.int64)
        assert [(whole * number).dtype for number in (2, 2.0)] == [torch.int64, torch.float32]
        assert (whole.t() + whole).sum(0, True).shape == (1,)
        assert whole.add_(1) is whole
