"""A packed batch gives each example the loss and gradients that it has alone, in transformers' own model."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen3Config

from tunesmith.data.example import Source
from tunesmith.data.pack import best_fit, collate
from tunesmith.data.tokens import TokenTable
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import next_token_loss, next_token_losses

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, attention_bias=True),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "mistral with a sliding window": MistralConfig(**SHAPE, sliding_window=5),
}


def table_of(lengths: list[int]) -> TokenTable:
    """Rows of random ids, about half of each learnt."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, 64, (length,), generator=generator).int().numpy()
        learnt = (torch.rand(length, generator=generator) < 0.5).numpy()
        learnt[-1] = True
        rows.append((ids, learnt, Source("rows", number + 1)))
    return TokenTable.build(rows)


def plain_loss(model: PreTrainedModel, ids: torch.Tensor, learnt: torch.Tensor) -> torch.Tensor:
    """The textbook: logits of one example alone, −log p of each learnt next token, summed."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, ids[1:].long(), reduction="none")
    return losses[learnt[1:]].sum()


def gradients(loss: torch.Tensor, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_functionary_265_packed_examples_have_the_loss_and_gradients_that_they_have_alone(family: str) -> None:
    torch.manual_seed(0)
    alone = AutoModelForCausalLM.from_config(deepcopy(FAMILIES[family]), attn_implementation="sdpa").double().eval()
    packed = AutoModelForCausalLM.from_config(deepcopy(FAMILIES[family])).double().eval()
    packed.load_state_dict(alone.state_dict())
    use_document_attention(packed)
    table = table_of([3, 17, 2, 9, 30])
    batch = collate(table, range(5))

    rows = [(torch.tensor(ids), torch.tensor(learnt)) for ids, learnt in (table[row] for row in range(5))]
    losses = [plain_loss(alone, ids, learnt) for ids, learnt in rows]
    ours = next_token_loss(packed, batch)

    torch.testing.assert_close(ours, sum(losses), rtol=1e-10, atol=1e-10)
    each = next_token_losses(packed, batch).split(batch.learnt_per_row)
    for mine, expected in zip(each, losses, strict=True):
        torch.testing.assert_close(mine.sum(), expected.detach(), rtol=1e-10, atol=1e-10)
    expected_gradients = gradients(sum(losses), alone)
    for name, gradient in gradients(ours, packed).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-8, atol=1e-10, msg=name)


def test_best_fit_fills_batches_and_loses_no_row() -> None:
    lengths = [5, 60, 33, 31, 7, 64, 2, 62]
    bins = best_fit(lengths, 64)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in items) <= 64 for items in bins)
    assert len(bins) == 5, "33 + 31, 64, 62 + 2, 60, and 7 + 5: five batches hold them, and four cannot"
