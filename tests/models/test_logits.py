"""Forward passes: the precision of logits and pooled states, no caches, and families that change their logits."""

from typing import Any

import pytest
import torch
from small_models import batch_of, config_for, logits_alone, method_of, randomize, small_model
from transformers import LlamaForCausalLM

from tunesmith.errors import UserError
from tunesmith.models.forward import check_lm_head, loss_logits, model_logits, next_token_losses, pool


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_logits_and_pooled_states_are_in_fp32_or_wider(dtype: torch.dtype, wide: torch.dtype) -> None:
    model = small_model("gemma2", dtype=torch.float32, final_logit_softcapping=2.0).to(dtype)
    torch.manual_seed(0)
    rows = torch.randn(3, 32).to(dtype)
    logits = model_logits(model, rows)
    assert logits.dtype == wide
    torch.testing.assert_close(logits, 2 * torch.tanh(model.get_output_embeddings()(rows).to(wide) / 2))
    pooled = pool(rows, [1, 2], "mean")
    assert pooled.dtype == wide
    torch.testing.assert_close(pooled, torch.stack([rows[0].to(wide), rows[1:].to(wide).mean(0)]))


@pytest.mark.parametrize("targets", ["attention", ["lm_head"]])
def test_loss_logits_are_the_models_own_at_each_loss_position(targets: Any) -> None:
    peft_model = randomize(method_of("lora", rank=2, target_modules=targets).apply(small_model("granite"), seed=0))
    logits, labels = loss_logits(peft_model, batch_of())
    expected = torch.cat([each[:-1] for each in logits_alone(peft_model.get_base_model())])
    torch.testing.assert_close(logits, expected.to(logits.dtype), rtol=1e-4, atol=1e-4)
    assert labels.tolist() == batch_of().labels.tolist()


@pytest.mark.parametrize("family", ["llama", "bloom", "t5"])
def test_training_keeps_no_cache_of_keys_and_values(family: str) -> None:
    model = small_model(family)
    caches: list[Any] = []
    body = model.get_decoder() if family == "t5" else model.base_model
    body.register_forward_hook(lambda _, __, out: caches.append(out.get("past_key_values")))
    next_token_losses(model, batch_of([[5, 9, 13, 21, 30]], loss_mask=[range(2, 5)]))
    assert caches == [None]


class Doubled(LlamaForCausalLM):
    """A family that changes its logits after the last layer."""

    def forward(self, **arguments: Any) -> Any:
        out = super().forward(**arguments)
        out.logits = out.logits * 2
        return out


def test_a_family_that_changes_its_logits_in_an_unknown_way_is_refused() -> None:
    torch.manual_seed(0)
    model = Doubled(config_for("llama")).eval()
    with pytest.raises(UserError, match=r"^Doubled changes its logits after the last layer in an unknown way"):
        check_lm_head(model)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_check_of_the_head_uses_no_dropout_and_keeps_the_mode(family: str) -> None:
    model = small_model(family)
    modes: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    for training in (True, False):
        model.train(training)
        check_lm_head(model)
        assert model.training == training
    assert not any(modes)
    assert modes
