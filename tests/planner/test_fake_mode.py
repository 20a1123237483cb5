"""The quick fake mode gives the same results as PyTorch's own mode, for single operations and for complete steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import make_bases
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from tunesmith.config.recipe import Recipe
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.planner import fake_mode
from tunesmith.planner.device import device_named
from tunesmith.planner.plan import plan_run
from tunesmith.planner.step import Step, rows_like

FAMILIES = ("llama", "gpt2", "gemma3_text", "mixtral", "falcon", "granitemoehybrid")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases")
    make_bases(directory, FAMILIES)
    return directory


def step(base: Path, method: str, weights: str) -> Step:
    values: dict[str, Any] = {"base": {"path": str(base), "weights": weights}, "data": {"train": "rows.jsonl"}}
    recipe = Recipe.model_validate(values | {"method": method})
    batch_plan = BatchPlan.of(recipe, rows_like(recipe.objective, [240, 144, 384]))
    return plan_run(batch_plan, torch.bfloat16, device_named("here")).step


@pytest.mark.parametrize(
    ("family", "method", "weights"),
    [
        (family, method, weights)
        if (family, method) in (("llama", "lora"),)
        else pytest.param(family, method, weights, marks=pytest.mark.long)
        for family in FAMILIES
        for method, weights in (("lora", "nf4"), ("full", "auto"))
    ],
)
def test_a_planned_step_equals_pytorchs_own_fake_mode(
    family: str, method: str, weights: str, bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = step(bases / family, method, weights)
    assert {fake_mode._kind(each) for each in (torch.ops.aten.mm.default, torch.ops.aten.t.default)} == {
        "maker",
        "view",
    }
    monkeypatch.setattr(fake_mode, "_kind", lambda _: "unusual")
    assert quick == step(bases / family, method, weights)


OPERATIONS: list[Callable[[], Any]] = [
    lambda: torch.ones(3, dtype=torch.int64) * 2,
    lambda: torch.ones(3, dtype=torch.int64) * 2.0,
    lambda: torch.ones(3, dtype=torch.int64).sqrt(),
    lambda: torch.add(torch.ones(3), torch.ones(2, 3), out=torch.empty(0)),
    lambda: torch.mul(torch.ones(3), 2, out=torch.empty(3)),
    lambda: torch.ones(3).add_(1),
    lambda: torch.ones(4, 6).t().reshape(3, 8),
    lambda: torch.ones(4, 6).t()[1:3].expand(5, 2, 4).split(2),
    lambda: torch.ones(4, 6, device="meta") + 1,
    lambda: torch.linalg.svd(torch.ones(4, 3)),
    lambda: torch.ops.aten._masked_softmax(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)),
    lambda: torch.nn.functional.scaled_dot_product_attention(*[torch.ones(1, 2, 5, 8)] * 3, is_causal=True),
    lambda: torch.nn.functional.layer_norm(torch.ones(2, 3), (3,)),
    lambda: torch.ones(4, 6).max(1),
    lambda: torch.ones(4, 6).to(torch.bfloat16).to(torch.bfloat16),
]


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_operations_give_the_same_shapes_strides_dtypes_and_views(number: int) -> None:
    def properties(mode: FakeTensorMode, default: torch.dtype) -> list[Any]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            with mode:
                tensors = [leaf for leaf in tree_leaves(OPERATIONS[number]()) if isinstance(leaf, torch.Tensor)]
        finally:
            torch.set_default_dtype(before)
        layouts = [(each.shape, each.stride(), each.dtype, each.device, each.storage_offset()) for each in tensors]
        return [*layouts, len({tensor.untyped_storage()._cdata for tensor in tensors})]

    for default in (torch.float32, torch.bfloat16):  # in the same process: cached results must not mix
        assert properties(fake_mode.QuickFakeMode(), default) == properties(FakeTensorMode(), default)


def test_an_argument_written_in_place_is_returned_itself() -> None:
    with fake_mode.QuickFakeMode():
        tensor = torch.ones(3, dtype=torch.int64)
        assert tensor.add_(1) is tensor
        assert torch.mul(tensor, 2, out=(out := torch.empty(3, dtype=torch.int64))) is out


@pytest.mark.parametrize("missing", ["has_meta", "op_implementations_checks"])
def test_without_the_private_parts_of_pytorch_its_own_mode_is_used(
    missing: str, bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = step(bases / "llama", "lora", "auto")
    assert type(fake_mode.new_fake_mode()) is fake_mode.QuickFakeMode
    fake_mode._kind.cache_clear()
    fake_mode._works.cache_clear()
    with monkeypatch.context() as patched:
        patched.delattr(f"torch._subclasses.fake_impls.{missing}")
        assert type(fake_mode.new_fake_mode()) is fake_mode.OwnFakeMode
        assert step(bases / "llama", "lora", "auto") == quick
    fake_mode._kind.cache_clear()
    fake_mode._works.cache_clear()


def test_without_the_module_of_the_private_parts_pytorchs_own_mode_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for cached in (fake_mode._kind, fake_mode._works):
        cached.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(fake_mode, "fake_impls", None)
        assert type(fake_mode.new_fake_mode()) is fake_mode.OwnFakeMode
    for cached in (fake_mode._kind, fake_mode._works):
        cached.cache_clear()


def test_where_the_quick_mode_gives_other_results_pytorchs_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mode._works.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(fake_mode, "_results", lambda *_: fake_mode.TensorSpec((1,), (1,), torch.float32))
        assert type(fake_mode.new_fake_mode()) is fake_mode.OwnFakeMode
    fake_mode._works.cache_clear()
    assert type(fake_mode.new_fake_mode()) is fake_mode.QuickFakeMode
