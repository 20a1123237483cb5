"""A bigram model: its next token depends only on the last one, with known logits. And reference sampling from them."""

from collections.abc import Sequence
from typing import Any

import torch
from bytewise import byte_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from tunesmith.inference.sampling import Sampling

HIDDEN = 1024
"""Its square root is 32, so that the norm is exact in every dtype."""

NEVER = -100.0


def letters_model(tokenizer: PreTrainedTokenizerBase | None = None, **config: Any) -> LlamaForCausalLM:
    """After every token, each letter and digit has a probability in a different order; other tokens never occur."""
    tokenizer = tokenizer or byte_tokenizer()
    letters = tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))
    generator = torch.Generator().manual_seed(3)
    scores = torch.full((len(tokenizer), len(tokenizer)), NEVER)
    for row in scores:
        order = torch.randperm(len(letters), generator=generator)
        row[torch.tensor(letters)] = torch.linspace(-2, 2, len(letters)).bfloat16().float()[order]
    return bigram_model(scores, **config)


def chain_model(tokenizer: PreTrainedTokenizerBase, *tokens: str, **config: Any) -> LlamaForCausalLM:
    """Generates the tokens in this order after a line break, and then repeats the last one."""
    ids = tokenizer.convert_tokens_to_ids(["Ċ", *tokens])
    scores = torch.full((len(tokenizer), len(tokenizer)), NEVER)
    for token, following in zip(ids, [*ids[1:], ids[-1]], strict=True):
        scores[token, following] = 4.0
    return bigram_model(scores, **config)


def bigram_model(scores: Tensor, **config: Any) -> LlamaForCausalLM:
    """A Llama whose logits after token i are exactly `scores[i]`, for scores (vocabulary, vocabulary). They are exact
    in bf16 too if the scores are."""
    shape = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=2,
        rms_norm_eps=0.0,
        vocab_size=len(scores),
        **{"max_position_embeddings": 512, "eos_token_id": None, "bos_token_id": None, "pad_token_id": None, **config},
    )
    model = LlamaForCausalLM(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(scores), HIDDEN))
        model.model.norm.weight.fill_(1 / 32)
        model.lm_head.weight[:, : len(scores)] = scores.T
    return model


def scores_of(model: Any) -> Tensor:
    """The scores that the model was made from (vocabulary, vocabulary)."""
    scores: Tensor = model.lm_head.weight.detach()[:, : len(model.lm_head.weight)].T.float()
    return scores


def drawn_by_hand(scores: Tensor, prompt: Sequence[int], sampling: Sampling) -> list[int]:
    """The ids that follow, by the papers' formulas, sampled with PyTorch's generator."""
    generator = torch.Generator().manual_seed(sampling.seed)
    ids = list(prompt)
    for _ in range(sampling.max_new_tokens):
        row = scores[ids[-1]].clone()
        seen = torch.tensor(sorted(set(ids)))  # Keskar et al. 2019, for scores of either sign
        penalty = torch.where(row[seen] > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
        row[seen] *= penalty
        if sampling.temperature == 0:
            ids.append(int(row.argmax()))
            continue
        probabilities = torch.softmax(row / sampling.temperature, -1)
        order = probabilities.argsort(descending=True)
        before = probabilities[order].cumsum(0) - probabilities[order]
        probabilities[order[before >= sampling.top_p]] = 0.0  # Holtzman et al. 2020: the fewest that reach top_p
        ids.append(first_beyond(probabilities, generator))
    return ids[len(prompt) :]


def first_beyond(probabilities: Tensor, generator: torch.Generator) -> int:
    """The first token at which the sum of the probabilities (vocabulary,) exceeds a random share of it."""
    sums = probabilities.double().cumsum(0)
    share = torch.rand((), dtype=torch.float64, generator=generator)
    return int((sums <= share * sums[-1]).sum())
