"""In a packed batch, each example has the same loss and gradients as alone in the model of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import DECODERS, ENCODERS, PADDED, config_of
from matrix import make_bases
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import collate
from tunesmith.data.example import Source
from tunesmith.data.pack import best_fit, bucket_by_length, next_fit, width
from tunesmith.data.tokens import TokenTable
from tunesmith.heads.sequence_classification import SequenceClassificationHead, class_logits
from tunesmith.heads.token_classification import TokenClassificationHead, tag_logits
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.predict import predict
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import check_lm_head, next_token_loss, next_token_losses, pooled

EAGER = {"bloom", "gemma2", "gpt_oss", "deberta", "deberta-v2"}
"""Families that PyTorch's own attention (SDPA) does not support."""

CLOSE = 1e-5
"""Relative to the largest element: transformers has norms and softmax in fp32; mixed documents differ by a tenth."""


EXPERTS = {"experts_implementation": "eager"}
"""Grouped matrix products of experts are not available in float64."""


def table_of(lengths: list[int]) -> TokenTable:
    """Rows of random ids; about half of each row's tokens are loss tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, 64, (length,), generator=generator).int().numpy()
        loss_mask = (torch.rand(length, generator=generator) < 0.5).numpy()
        loss_mask[-1] = True
        rows.append((ids, loss_mask, Source("rows", number + 1)))
    return TokenTable.build(rows)


def plain_loss(model: PreTrainedModel, ids: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """The definition: logits of one example alone, −log p of each next token in the loss mask, summed."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, ids[1:].long(), reduction="none")
    return losses[loss_mask[1:]].sum()


def gradients(loss: torch.Tensor, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    values = torch.autograd.grad(loss, list(named.values()), materialize_grads=True, allow_unused=True)
    return dict(zip(named, values, strict=True))


def twins(kind: type, family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two models with the same random weights, large enough to show effects: transformers' own, and one for packing."""
    torch.manual_seed(0)
    attention = "eager" if family in EAGER else "sdpa"
    alone = kind.from_config(config_of(family), attn_implementation=attention, **EXPERTS).double().eval()
    for parameter in alone.parameters():
        parameter.data.normal_(0, 0.3 if parameter.ndim > 1 else 0.05).add_(parameter.ndim == 1)
    packed = kind.from_config(config_of(family), **EXPERTS).double().eval()
    packed.load_state_dict(alone.state_dict())
    assert use_document_attention(packed) == (family not in PADDED)
    return alone, packed


def test_dropout_does_not_decide_whether_a_family_packs() -> None:
    config = config_of("gpt2")
    config.resid_pdrop = config.attn_pdrop = 0.9
    model = AutoModelForCausalLM.from_config(config).train()
    assert use_document_attention(model)
    assert model.training


@pytest.mark.parametrize("family", DECODERS)
def test_packed_examples_have_the_same_loss_and_gradients_as_alone(family: str) -> None:
    """Guards against https://github.com/MeetKai/functionary/issues/265."""
    alone, packed = twins(AutoModelForCausalLM, family)
    check_lm_head(packed)
    table = table_of([3, 17, 2, 9, 30])
    batch = collate(table, range(5))

    rows = [(torch.tensor(ids), torch.tensor(loss_mask)) for ids, loss_mask in (table[row] for row in range(5))]
    losses = [plain_loss(alone, ids, loss_mask) for ids, loss_mask in rows]
    ours = next_token_loss(packed, batch)

    torch.testing.assert_close(ours, sum(losses), rtol=CLOSE, atol=0)
    row_losses = next_token_losses(packed, batch).split(batch.loss_tokens_per_row)
    for row_loss, expected in zip(row_losses, losses, strict=True):
        torch.testing.assert_close(row_loss.sum(), expected.detach(), rtol=CLOSE, atol=CLOSE)
    expected_gradients = gradients(sum(losses), alone)
    for name, gradient in gradients(ours, packed).items():
        expected_gradient = expected_gradients[name]
        assert (gradient - expected_gradient).abs().max() <= CLOSE * expected_gradient.abs().max() + 1e-9, name


def text_logits(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def word_logits(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return text_logits(model, ids, positions)[0][positions]


def mean_states(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1)


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize(
    ("kind", "head", "plain"),
    [
        (AutoModelForSequenceClassification, class_logits, text_logits),
        (AutoModelForTokenClassification, tag_logits, word_logits),
        (AutoModel, lambda model, batch: pooled(model, batch, "mean"), mean_states),
    ],
    ids=["classes", "tags", "vectors"],
)
def test_packed_texts_have_the_same_outputs_and_gradients_as_alone(
    family: str, kind: Any, head: Any, plain: Any
) -> None:
    alone, packed = twins(kind, family)
    if head is class_logits:
        SequenceClassificationHead().check(packed)
    if head is tag_logits:
        TokenClassificationHead().check(packed)
    rows = []
    for number, length in enumerate([4, 17, 3, 9, 30]):
        ids = (torch.arange(length) * 7 % 61 + 3).int().numpy()
        positions = np.arange(length) % 3 == 1 if head is tag_logits else np.arange(length) == length - 1
        rows.append((ids, positions, Source("rows", number + 1), (1.0,) * int(positions.sum())))
    batch = collate(TokenTable.build(rows), range(5))

    inputs = [(torch.tensor(ids)[None].long(), torch.tensor(positions)) for ids, positions, *_ in rows]
    expected = torch.cat([plain(alone, ids, positions) for ids, positions in inputs])
    ours = head(packed, batch)

    torch.testing.assert_close(ours, expected, rtol=CLOSE, atol=CLOSE)
    weights = torch.linspace(-1, 2, ours.numel()).double().view_as(ours)
    expected_gradients = gradients((expected * weights).sum(), alone)
    for name, gradient in gradients((ours * weights).sum(), packed).items():
        expected_gradient = expected_gradients[name]
        assert (gradient - expected_gradient).abs().max() <= CLOSE * expected_gradient.abs().max() + 1e-9, name


def test_best_fit_fills_batches_and_keeps_every_row() -> None:
    lengths = [5, 60, 33, 31, 7, 64, 2, 62]
    bins = best_fit(lengths, 64)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in items) <= 64 for items in bins)
    assert len(bins) == 5, "33 + 31, 64, 62 + 2, 60, and 7 + 5: they need five batches, not fewer"


def test_padded_batches_hold_similar_lengths_and_stay_within_the_token_budget() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 200).tolist()
    for bins in (bucket_by_length(lengths, 256), next_fit(lengths, 256, padded=True)):
        assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
        assert all(width([lengths[item] for item in items], padded=True) <= 256 for items in bins)
    padded = sum(width([lengths[item] for item in items], padded=True) for items in bucket_by_length(lengths, 256))
    assert padded < 1.1 * sum(lengths), "there is little padding"
    assert next_fit([300, 5], 256, padded=True) == [[0], [1]], "a row longer than the budget has its own batch"


def test_positions_that_start_after_the_padding_index_reduce_max_length(tmp_path: Path) -> None:
    make_bases(tmp_path, ["roberta"])
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"{'w1 ' * 700},{name}\n" for name in ("a", "b") * 3))
    recipe = {
        "base": str(tmp_path / "roberta"),
        "data": {"train": str(rows), "held_out": 0.0, "cache": False},
        "objective": "classification",
        "train": {"steps": 1, "precision": "fp32"},
    }
    run = tunesmith.train(recipe, tmp_path / "run")
    first = 1 + AutoConfig.from_pretrained(tmp_path / "roberta").pad_token_id
    assert Recipe.load(run.directory / "recipe.yaml").data.max_length == 512 - first
    reference = ModelReference.find(str(run.directory))
    model = reference.model(torch.float32, torch.device("cpu"))
    assert predict(model, reference.tokenizer(), reference.head, ["w1 " * 700])
