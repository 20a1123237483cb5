"""Experts as the engine runs them compute what the family's own code does, each token as if it were alone."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from engines import paged, random_model
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tunesmith.inference.paged_model import Piece
from tunesmith.modules.rowwise import RowwiseFunctions, row_by_row
from tunesmith.modules.served_experts import ServedExperts, serve_experts
from tunesmith.ops import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built here")

FAMILIES = ("deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe")


def experts_of(model: Any) -> nn.Module:
    return next(module for module in model.modules() if type(module).__name__.endswith("Experts"))


def routed(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, and two different experts of four for each token, with weights."""
    generator = torch.Generator().manual_seed(tokens)
    index = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(tokens)])
    hidden, weights = torch.randn(tokens, 32, generator=generator), torch.rand(tokens, 2, generator=generator)
    return hidden.to(dtype), index, weights.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_compute_their_familys_result_and_each_token_as_alone(family: str, dtype: torch.dtype) -> None:
    own = random_model(family).to(dtype)
    served = deepcopy(own)
    assert serve_experts(served) == sum(type(each).__name__.endswith("Experts") for each in own.modules()) > 0
    hidden, index, weights = routed(33, dtype)
    with torch.no_grad():
        expected = experts_of(own)(hidden, index, weights)
        found = experts_of(served)(hidden, index, weights)
        alone = [experts_of(served)(hidden[k : k + 1], index[k : k + 1], weights[k : k + 1]) for k in range(33)]
    tolerance = (1e-5 if dtype == torch.float32 else 0.02) * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert torch.equal(found, torch.cat(alone))
    assert not any(each.ndim == 3 for each in served.parameters()), "the matrices are in memory once"


def test_a_token_without_an_expert_gets_nothing_from_it() -> None:
    served = random_model("mixtral")
    serve_experts(served)
    hidden, index, weights = routed(5, torch.float32)
    index[2] = 4
    with torch.no_grad():
        found = experts_of(served)(hidden, index, weights)
    assert not found[2].any()
    assert found[[0, 1, 3, 4]].any(1).all()


def test_experts_that_compute_something_else_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("mixtral")
    own = type(experts_of(model)).forward
    monkeypatch.setattr(type(experts_of(model)), "forward", lambda self, *inputs: own(self, *inputs).square())
    assert serve_experts(model) == 0
    assert not any(isinstance(module, ServedExperts) for module in model.modules())


def test_low_rank_products_on_experts_are_in_the_served_experts() -> None:
    torch.manual_seed(0)
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    model = get_peft_model(
        random_model("mixtral"), LoraConfig(r=4, target_modules=["q_proj"], target_parameters=targets)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
        ids = [5, 9, 17, 3, 40]
        expected = model(input_ids=torch.tensor([ids])).logits[0]
        with model.disable_adapter():
            assert not torch.allclose(model(input_ids=torch.tensor([ids])).logits[0], expected, atol=0.1)
    engine = paged(model)
    engine.allocate(1)
    torch.testing.assert_close(engine.compute([Piece(ids, 0, [0], 0)]), expected, rtol=1e-4, atol=1e-4)


def test_functions_of_activations_have_the_bits_of_single_rows() -> None:
    x = 4 * torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    with RowwiseFunctions() as functions:
        torch.tanh(x)
        torch.sigmoid(x[:1])
        assert not functions.used, "neither depends on other rows"
        found = [torch.sigmoid(x), x.sigmoid(), nn.functional.softplus(x, beta=2.0)]
        assert functions.used
    single = [torch.sigmoid, Tensor.sigmoid, lambda row: nn.functional.softplus(row, beta=2.0)]
    for each, function in zip(found, single, strict=True):
        assert torch.equal(each, torch.cat([function(row) for row in x.split(1)]))
    assert not torch.equal(found[0], torch.sigmoid(x)), "in one call the last numbers are others"


def test_functions_are_computed_by_rows_only_in_models_that_call_them() -> None:
    assert paged(random_model("mixtral")).rowwise is None
    assert paged(random_model("llama")).rowwise is None


@pytest.mark.parametrize("shape", [(7, 5), (1, 7, 5)])
def test_a_router_row_by_row_gives_what_it_gives_for_all(shape: tuple[int, ...]) -> None:
    def router(x: Tensor) -> tuple[Tensor, Tensor, None]:
        rows = x.reshape(-1, 5).double()
        return *rows.softmax(-1).topk(2), None

    x = torch.randn(*shape)
    for found, expected in zip(row_by_row(router)(x)[:2], router(x)[:2], strict=True):
        assert found.shape == (7, 2)
        torch.testing.assert_close(found, expected)
    assert row_by_row(router)(x)[2] is None
    assert torch.equal(row_by_row(torch.neg)(x), -x)
