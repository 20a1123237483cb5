"""Document attention: when a model gets it, what it computes without options, and what it refuses."""

import pytest
import torch
from small_models import ROWS, own_forward, small_model
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunesmith.errors import UserError
from tunesmith.heads.sequence_classification import SequenceClassificationHead
from tunesmith.models import attention
from tunesmith.models.attention import (
    NAME,
    PROBE_LENGTHS,
    first_position,
    packs,
    probe_ids,
    separates_documents,
    use_cached_attention,
    use_document_attention,
)


@pytest.mark.parametrize(("difference", "separates"), [(0.049, True), (0.051, False)])
def test_documents_are_separate_if_their_states_differ_by_less_than_a_twentieth(
    difference: float, separates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = own_forward(small_model())
    documents = probe_ids(model).split(PROBE_LENGTHS)
    alone = torch.cat([model.base_model(input_ids=each[None]).last_hidden_state[0] for each in documents])
    monkeypatch.setattr(attention, "packed_states", lambda _: alone * (1 - difference))
    assert separates_documents(model) == separates
    monkeypatch.setattr(attention, "packed_states", lambda _: None)
    assert not separates_documents(model)


def test_a_model_that_does_not_separate_documents_keeps_its_attention_and_its_mode() -> None:
    model = own_forward(small_model()).train()
    modes = []

    def trial(model: nn.Module) -> bool:
        modes.append(model.training)
        model.set_attn_implementation(NAME)  # type: ignore[operator]
        return False

    assert not use_document_attention(model, trial)
    assert modes == [False]
    assert model.training
    assert model.config._attn_implementation == "eager"
    assert not packs(model)


def test_a_model_is_tried_once() -> None:
    model = small_model()
    assert use_document_attention(model, lambda _: pytest.fail("it has document attention already"))
    use_cached_attention(model)
    assert model.config._attn_implementation == "sdpa"
    assert not packs(model)


def test_positions_start_after_the_padding_index() -> None:
    assert first_position(small_model("roberta", SequenceClassificationHead(("a", "b")), pad_token_id=1)) == 2
    assert first_position(small_model("bert", SequenceClassificationHead(("a", "b")))) == 0
    assert first_position(small_model("llama")) == 0


def test_attention_is_causal_and_scaled_by_the_size_of_a_head_unless_told_otherwise() -> None:
    use_document_attention(small_model())
    attend = ALL_ATTENTION_FUNCTIONS[NAME]
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 7, 8, dtype=torch.float64)
    encoder = nn.Identity()
    encoder.is_causal = False
    for module, options, causal, scale in (
        (nn.Identity(), {}, True, 8**-0.5),
        (nn.Identity(), {"scaling": 0.5}, True, 0.5),
        (nn.Identity(), {"is_causal": False}, False, 8**-0.5),
        (encoder, {}, False, 8**-0.5),
        (encoder, {"is_causal": True}, True, 8**-0.5),
    ):
        out, weights = attend(module, q, k, v, None, document_lengths=[7], **options)
        expected = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        torch.testing.assert_close(out, expected.transpose(1, 2))
        assert weights is None


def test_what_document_attention_cannot_apply_is_refused_by_the_modules_name() -> None:
    model = small_model()
    with pytest.raises(UserError, match=r"^LlamaAttention did not pass on document_lengths"):
        model.base_model(input_ids=torch.tensor(ROWS[:1]))
    attend = ALL_ATTENTION_FUNCTIONS[NAME]
    states = torch.zeros(1, 2, 7, 8)
    masked: tuple[tuple[torch.Tensor | None, dict[str, torch.Tensor]], ...] = (
        (torch.zeros(1, 1, 7, 7), {}),
        (None, {"position_bias": torch.zeros(1, 2, 7, 7)}),
    )
    for mask, options in masked:
        with pytest.raises(UserError, match=r"^Identity has its own attention mask"):
            attend(nn.Identity(), states, states, states, mask, document_lengths=[7], **options)
    prefix = [(states, states)]
    with pytest.raises(
        UserError, match=r"^method: prefix has keys and values for each layer, and Identity has no layer"
    ):
        attend(nn.Identity(), states, states, states, None, document_lengths=[7], document_prefix=prefix)
