"""A packed batch gives each example the loss and gradients that it has alone, in transformers' own model."""

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
from tunesmith.data.example import Source
from tunesmith.data.pack import best_fit, bucket_by_length, collate, next_fit, width
from tunesmith.data.tokens import TokenTable
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import check_head, next_token_loss, next_token_losses, pooled
from tunesmith.models.heads import check_new_head, class_logits, tag_logits
from tunesmith.models.model_reference import ModelReference
from tunesmith.models.predict import tell

EAGER = {"bloom", "gemma2", "gpt_oss", "deberta", "deberta-v2"}
"""Families that PyTorch's attention does not compute."""

CLOSE = 1e-5
"""Of the largest number: transformers takes norms and softmax in fp32; documents that mix differ by a tenth."""


EXPERTS = {"experts_implementation": "eager"}
"""Grouped products of experts are not to be had in float64."""


def table_of(lengths: list[int]) -> TokenTable:
    """Rows of random ids, about half of each learnt."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, 64, (length,), generator=generator).int().numpy()
        loss_mask = (torch.rand(length, generator=generator) < 0.5).numpy()
        loss_mask[-1] = True
        rows.append((ids, loss_mask, Source("rows", number + 1)))
    return TokenTable.build(rows)


def plain_loss(model: PreTrainedModel, ids: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """The textbook: logits of one example alone, −log p of each learnt next token, summed."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, ids[1:].long(), reduction="none")
    return losses[loss_mask[1:]].sum()


def gradients(loss: torch.Tensor, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), materialize_grads=True, allow_unused=True)
    return dict(zip(named, found, strict=True))


def twins(kind: type, family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two of the same random weights, large enough for all to show: one as the library has it, one for packing."""
    torch.manual_seed(0)
    own = "eager" if family in EAGER else "sdpa"
    alone = kind.from_config(config_of(family), attn_implementation=own, **EXPERTS).double().eval()
    for parameter in alone.parameters():
        parameter.data.normal_(0, 0.3 if parameter.ndim > 1 else 0.05).add_(parameter.ndim == 1)
    packed = kind.from_config(config_of(family), **EXPERTS).double().eval()
    packed.load_state_dict(alone.state_dict())
    assert use_document_attention(packed) == (family not in PADDED)
    return alone, packed


@pytest.mark.parametrize("family", DECODERS)
def test_functionary_265_packed_examples_have_the_loss_and_gradients_that_they_have_alone(family: str) -> None:
    alone, packed = twins(AutoModelForCausalLM, family)
    check_head(packed)
    table = table_of([3, 17, 2, 9, 30])
    batch = collate(table, range(5))

    rows = [(torch.tensor(ids), torch.tensor(loss_mask)) for ids, loss_mask in (table[row] for row in range(5))]
    losses = [plain_loss(alone, ids, loss_mask) for ids, loss_mask in rows]
    ours = next_token_loss(packed, batch)

    torch.testing.assert_close(ours, sum(losses), rtol=CLOSE, atol=0)
    each = next_token_losses(packed, batch).split(batch.loss_tokens_per_row)
    for mine, expected in zip(each, losses, strict=True):
        torch.testing.assert_close(mine.sum(), expected.detach(), rtol=CLOSE, atol=CLOSE)
    expected_gradients = gradients(sum(losses), alone)
    for name, gradient in gradients(ours, packed).items():
        wanted = expected_gradients[name]
        assert (gradient - wanted).abs().max() <= CLOSE * wanted.abs().max() + 1e-9, name


def text_logits(model: Any, ids: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def word_logits(model: Any, ids: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    return text_logits(model, ids, marks)[0][marks]


def mean_states(model: Any, ids: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
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
def test_packed_texts_have_the_scores_and_gradients_that_they_have_alone(
    family: str, kind: Any, head: Any, plain: Any
) -> None:
    alone, packed = twins(kind, family)
    if head in (class_logits, tag_logits):
        check_new_head(packed)
    rows = []
    for number, length in enumerate([4, 17, 3, 9, 30]):
        ids = (torch.arange(length) * 7 % 61 + 3).int().numpy()
        marks = np.arange(length) % 3 == 1 if head is tag_logits else np.arange(length) == length - 1
        rows.append((ids, marks, Source("rows", number + 1), (1.0,) * int(marks.sum())))
    batch = collate(TokenTable.build(rows), range(5))

    inputs = [(torch.tensor(ids)[None].long(), torch.tensor(marks)) for ids, marks, *_ in rows]
    expected = torch.cat([plain(alone, *each) for each in inputs])
    ours = head(packed, batch)

    torch.testing.assert_close(ours, expected, rtol=CLOSE, atol=CLOSE)
    weights = torch.linspace(-1, 2, ours.numel()).double().view_as(ours)
    expected_gradients = gradients((expected * weights).sum(), alone)
    for name, gradient in gradients((ours * weights).sum(), packed).items():
        wanted = expected_gradients[name]
        assert (gradient - wanted).abs().max() <= CLOSE * wanted.abs().max() + 1e-9, name


def test_best_fit_fills_batches_and_loses_no_row() -> None:
    lengths = [5, 60, 33, 31, 7, 64, 2, 62]
    bins = best_fit(lengths, 64)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in items) <= 64 for items in bins)
    assert len(bins) == 5, "33 + 31, 64, 62 + 2, 60, and 7 + 5: five batches hold them, and four cannot"


def test_padded_batches_hold_rows_of_like_length_and_stay_within_the_budget_with_their_padding() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 200).tolist()
    for bins in (bucket_by_length(lengths, 256), next_fit(lengths, 256, padded=True)):
        assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
        assert all(width([lengths[item] for item in items], padded=True) <= 256 for items in bins)
    padded = sum(width([lengths[item] for item in items], padded=True) for items in bucket_by_length(lengths, 256))
    assert padded < 1.1 * sum(lengths), "little of it is padding"
    assert next_fit([300, 5], 256, padded=True) == [[0], [1]], "what is longer than the budget goes alone"


def test_an_encoder_whose_positions_count_on_from_the_padding_has_room_for_so_many_less(tmp_path: Path) -> None:
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
    usable = ModelReference.find(str(run.directory))
    model = usable.model(torch.float32, torch.device("cpu"))
    assert tell(model, usable.tokenizer(), usable.ending, ["w1 " * 700])
