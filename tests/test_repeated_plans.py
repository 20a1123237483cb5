"""Tests share a simulated step only if all that it depends on is the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from repeated_plans import once

from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable
from tunesmith.planner.allocators import reserved, resident
from tunesmith.planner.step import Simulator, Step

Simulated = Callable[..., bool]
"""Whether a recipe's step is simulated: (overrides, lengths of rows, dtype, allocator) → bool."""


@pytest.fixture
def is_simulated(tmp_path: Path) -> Simulated:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"hidden_size": 8}), encoding="utf-8")
    calls: list[Simulator] = []

    def simulate(simulator: Simulator, *_: object) -> Step:
        calls.append(simulator)
        return cast(Step, None)

    step = once(simulate, {})

    def ask(*overrides: str, rows: tuple[int, ...] = (3, 4), dtype: Any = torch.float32, arena: Any = resident) -> bool:
        values = {
            "base": str(tmp_path / "one"),
            "data": {"train": "rows.jsonl"},
            "method": {"kind": "lora"},
            "objective": {"kind": "instruction"},
        }
        recipe = Recipe.load(values, list(overrides))
        table = TokenTable.build(
            (torch.arange(n).int().numpy(), torch.ones(n).bool().numpy(), Source("rows", row))
            for row, n in enumerate(rows, 1)
        )
        before = len(calls)
        step(Simulator(recipe, lambda *_: (table, [0, 1]), dtype, arena), None, None, False)
        return len(calls) > before

    return ask


def test_a_step_that_only_its_place_in_a_run_sets_apart_is_shared(is_simulated: Simulated, tmp_path: Path) -> None:
    assert is_simulated()
    assert not is_simulated()
    assert not is_simulated("train.steps=5", "train.learning_rate=0.5", "train.seed=7", "data.train=others.jsonl")
    assert not is_simulated(f"base.path={tmp_path / 'other'}")  # the same files


def test_a_step_of_other_settings_rows_or_files_is_not_shared(is_simulated: Simulated, tmp_path: Path) -> None:
    assert is_simulated()
    assert is_simulated("method.rank=3")
    assert is_simulated("train.optimizer=lion")
    assert is_simulated("objective.label_smoothing=0.1")
    assert is_simulated(rows=(3, 5))
    assert is_simulated(dtype=torch.bfloat16)
    assert is_simulated(arena=reserved)
    (tmp_path / "one" / "config.json").write_text(json.dumps({"hidden_size": 9}), encoding="utf-8")
    assert is_simulated()
