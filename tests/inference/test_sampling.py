"""The next token is chosen as transformers chooses it, and by OpenAI's formulas for what only that has."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith.inference.sampling import Sampling, adjusted, chosen, cut, drawn, random_stream

some = settings(max_examples=60)
VOCABULARY = 40
tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)
seeds = st.integers(0, 2**20)


def random_logits(seed: int, count: int = VOCABULARY) -> Tensor:
    return 3 * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def processed(processor: Any, scores: Tensor, ids: list[int] | None = None) -> Tensor:
    """What a logits processor of transformers makes of one row."""
    row: Tensor = processor(torch.tensor([ids or [0]]), scores[None].clone())[0]
    return row


@some
@given(seed=seeds, prompt=tokens, answer=tokens, penalty=st.floats(0.5, 3.0))
def test_repetition_penalty_is_transformers_over_prompt_and_answer(
    seed: int, prompt: list[int], answer: list[int], penalty: float
) -> None:
    assume(prompt or answer)
    logits = random_logits(seed)
    ours = adjusted(logits, Sampling(repetition_penalty=penalty), [-1, *prompt], answer)  # after a virtual token
    expected = processed(RepetitionPenaltyLogitsProcessor(penalty), logits, prompt + answer)
    torch.testing.assert_close(ours, expected)


@some
@given(seed=seeds, prompt=tokens, answer=tokens, presence=st.floats(-2, 2), frequency=st.floats(-2, 2))
def test_presence_and_frequency_penalties_are_openais(
    seed: int, prompt: list[int], answer: list[int], presence: float, frequency: float
) -> None:
    """mu[j] -> mu[j] - c[j] · frequency - float(c[j] > 0) · presence, where c counts the tokens sampled so far."""
    logits = random_logits(seed)
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    expected = logits.clone()
    for token in range(VOCABULARY):
        count = answer.count(token)
        expected[token] = logits[token] - count * frequency - float(count > 0) * presence
    torch.testing.assert_close(adjusted(logits, sampling, prompt, answer), expected)


def test_a_bias_is_added_to_the_scores_of_its_tokens() -> None:
    logits = random_logits(0)
    out = adjusted(logits, Sampling(logit_bias={3: 2.5, 7: -100.0}), [3], [3])
    expected = logits.clone()
    expected[3] += 2.5
    expected[7] -= 100.0
    torch.testing.assert_close(out, expected)
    assert adjusted(logits, Sampling(), [3], [3]) is logits
    greedy = Sampling(logit_bias={7: 100.0})
    assert not greedy.takes_the_likeliest
    assert chosen(logits, greedy, [3], [], torch.Generator()) == 7


@some
@given(seed=seeds, top_k=st.integers(1, 2 * VOCABULARY))
def test_top_k_keeps_transformers_tokens(seed: int, top_k: int) -> None:
    logits = random_logits(seed)
    assert torch.equal(cut(logits, Sampling(top_k=top_k)), processed(TopKLogitsWarper(top_k), logits))


@some
@given(seed=seeds, top_p=st.floats(0.01, 0.999), count=st.sampled_from([VOCABULARY, 1500, 2048]))
def test_top_p_keeps_transformers_tokens(seed: int, top_p: float, count: int) -> None:
    logits = random_logits(seed, count) / 3
    probabilities = torch.softmax(logits, -1).sort(descending=True).values
    border = (probabilities.cumsum(0) - top_p).abs().min()
    assume(border > 1e-5)  # where rounding decides, both are right
    assert torch.equal(cut(logits, Sampling(top_p=top_p)), processed(TopPLogitsWarper(top_p), logits))


def test_top_p_of_a_flat_distribution_looks_at_the_whole_vocabulary() -> None:
    logits = 1e-3 * random_logits(0, 4096)
    kept = int(torch.isfinite(cut(logits, Sampling(top_p=0.9))).sum())
    assert kept == pytest.approx(0.9 * 4096, rel=0.01)


@some
@given(seed=seeds, min_p=st.floats(0.001, 1.0))
def test_min_p_keeps_transformers_tokens(seed: int, min_p: float) -> None:
    logits = random_logits(seed)
    shares = torch.softmax(logits, -1)
    assume(((shares / shares.max()) - min_p).abs().min() > 1e-6 or min_p == 1.0)
    assert torch.equal(cut(logits, Sampling(min_p=min_p)), processed(MinPLogitsWarper(min_p), logits))


@some
@given(seed=seeds, temperature=st.floats(0.1, 3.0), top_k=st.integers(0, 20), min_p=st.sampled_from([0.0, 0.05]))
def test_a_token_is_drawn_from_what_is_left_with_its_own_random_numbers(
    seed: int, temperature: float, top_k: int, min_p: float
) -> None:
    logits = random_logits(seed)
    sampling = Sampling(temperature=temperature, top_k=top_k, min_p=min_p, seed=seed)
    scores = logits / temperature
    if top_k:
        scores = processed(TopKLogitsWarper(top_k), scores)
    if min_p:
        scores = processed(MinPLogitsWarper(min_p), scores)
    number = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sums = torch.softmax(scores.double(), -1).cumsum(0)
    assume(float((sums - number).abs().min()) > 1e-6)  # where rounding decides, both are right
    expected = int((sums <= number).sum())
    assert chosen(logits, sampling, [1], [], random_stream(seed, 0)) == expected


@pytest.mark.parametrize("count", [1, 257, 1000])
def test_tokens_are_drawn_as_often_as_they_are_likely(count: int) -> None:
    """And never those without a probability, wherever blocks of the vocabulary end."""
    scores = random_logits(count, count)
    scores[1::3] = float("-inf")
    generator = torch.Generator().manual_seed(0)
    draws = 1500
    found = torch.bincount(torch.tensor([drawn(scores, generator) for _ in range(draws)]), minlength=count).double()
    expected = draws * torch.softmax(scores.double(), -1)
    assert not found[expected == 0].any()
    often = expected > 5
    deviations = (found - expected)[often] / expected[often].sqrt()
    assert float(deviations.square().sum()) < int(often.sum()) + 5 * (2 * int(often.sum())) ** 0.5


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_smallest_and_largest_random_numbers_draw_tokens_with_a_probability(
    number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = random_logits(0, 1000)
    scores[:300] = scores[-300:] = float("-inf")
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(number, dtype=torch.float64))
    assert drawn(scores, torch.Generator()) == (300 if number == 0 else 699)


@some
@given(seed=seeds, temperature=st.sampled_from([0.0, 0.7, 5.0]), allowed=st.sets(st.integers(0, 39), min_size=1))
def test_only_allowed_tokens_are_chosen(seed: int, temperature: float, allowed: set[int]) -> None:
    logits = random_logits(seed)
    mask = torch.zeros(VOCABULARY, dtype=torch.bool)
    mask[list(allowed)] = True
    sampling = Sampling(temperature=temperature, top_k=5, top_p=0.8)
    token = chosen(logits, sampling, [1], [], random_stream(seed, 0), mask)
    assert token in allowed
    if temperature == 0:
        assert token == max(allowed, key=lambda each: float(logits[each]))


def test_the_first_stream_of_a_seed_is_pytorchs_and_others_are_their_own() -> None:
    for seed in (0, 5, 2**40):
        expected = torch.rand(4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.rand(4, generator=random_stream(seed, 0)), expected)
    firsts = {
        tuple(torch.rand(2, generator=random_stream(seed, number)).tolist())
        for seed in range(5)
        for number in range(50)
    }
    assert len(firsts) == 250
