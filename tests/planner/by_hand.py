"""Steps, batch plans and plans with made-up figures, so that expected results can be computed by hand."""

from pathlib import Path
from typing import Any

import torch

from tunesmith.config.recipe import Recipe
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.planner.device import Device
from tunesmith.planner.fake_mode import TensorSpec
from tunesmith.planner.plan import Memory, Plan
from tunesmith.planner.step import Step, rows_like
from tunesmith.planner.trace import Operation

GPU = Device("a-gpu", "cuda", 20_000_000, {"bf16": 1e12, "fp32": 2e11}, 4e9, 700_000, 2.5, "made up")
CPU_ELSEWHERE = Device("a-cpu", "cpu", 20_000_000, {"fp32": 2e11}, 4e9, 700_000)
CPU_HERE = Device("this CPU", "cpu", 20_000_000, {}, 0.0, 700_000)


def shape(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> TensorSpec:
    strides = []
    stride = 1
    for size in reversed(sizes):
        strides.insert(0, stride)
        stride *= size
    return TensorSpec(sizes, tuple(strides), dtype)


def product(rows: int, inner: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Operation:
    arguments = shape(rows, inner, dtype=dtype), shape(inner, columns, dtype=dtype)
    return Operation("aten.mm.default", arguments, (), (shape(rows, columns, dtype=dtype),))


def addition(numbers: int, dtype: torch.dtype = torch.bfloat16) -> Operation:
    tensor = shape(numbers, dtype=dtype)
    return Operation("aten.add.Tensor", (tensor, tensor), (), (tensor,))


def a_step(**changed: Any) -> Step:
    """A step in which every figure is different."""
    figures: dict[str, Any] = {
        "parts": {"weights": 5_000, "adapters": 70, "activations": 900, "workspace": 33, "loss": 41},
        "slack": 17,
        "evaluation_parts": {"weights": 5_000, "adapters": 70, "workspace": 61, "loss": 29},
        "forward_backward": {product(64, 32, 16): 6.0, addition(1000): 4.0},
        "optimizer": {addition(500, torch.float32): 3.0},
        "evaluation": {product(64, 32, 16): 2.0, product(64, 32, 48): 1.0},
        "parameters": 2_500,
        "trained": 35,
        "blocks": 6,
        "packed": True,
        "largest": 1_200,
        "is_transposed": False,
    }
    return Step(**{**figures, **changed})


def a_recipe(base: dict[str, Any] | str | Path = "embedded", **parts: Any) -> Recipe:
    base_fields = {"path": str(base)} if isinstance(base, str | Path) else base
    return Recipe.model_validate({"base": base_fields, "data": {"train": "rows.jsonl"}, **parts})


def a_batch_plan(recipe: Recipe | None = None, lengths: tuple[int, ...] = (100, 60, 90, 200, 50)) -> BatchPlan:
    recipe = recipe or a_recipe(train={"epochs": 2, "tokens_per_step": 200, "shuffle": False})
    return BatchPlan.of(recipe, rows_like(recipe.objective, list(lengths)))


def a_plan(
    step: Step | None = None,
    device: Device = GPU,
    batch_plan: BatchPlan | None = None,
    available: int = 9_000,
    checkpointed: int = 0,
    memory: Memory | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Plan:
    memory = memory or Memory({"program": 700, "weights": 5_000, "gradients": 1_300}, {"training": 7_000})
    return Plan(memory, step or a_step(), device, checkpointed, batch_plan or a_batch_plan(), available, dtype)
