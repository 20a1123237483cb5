"""Small models in the generation engine, and what transformers and PEFT compute for the same texts."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import config_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.inference.engine import Engine
from tunesmith.inference.paged_model import PagedModel, paged_model
from tunesmith.inference.request import Request
from tunesmith.inference.sampling import Sampling
from tunesmith.ops import native

VOCABULARY = 67
"""No multiple of a vector register, so that the last numbers are computed differently."""
CACHE = 2**22
GREEDY = Sampling(max_new_tokens=10)
SAMPLED = Sampling(max_new_tokens=10, temperature=0.9, top_k=30, top_p=0.95, seed=3)

built = pytest.mark.skipif(native.library() is None, reason="this machine has no C compiler to build the kernels with")


def random_model(family: str, **more: Any) -> Any:
    """A model with weights so large that its output depends on every token before it, also in its biases."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, VOCABULARY, eos_token_id=None, **more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(8.0)
    return model


def paged(model: Any, in_int8: bool = False) -> PagedModel:
    """The model in the engine's form; `model` itself stays as it is."""
    found = paged_model(deepcopy(model), in_int8)
    assert found is not None
    return found


def prompts_of(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def requests_of(prompts: Sequence[Sequence[int]], sampling: Sampling = GREEDY, **more: Any) -> list[Request]:
    return [Request(prompt, sampling, number=number, **more) for number, prompt in enumerate(prompts)]


Answer = tuple[list[int], list[float]]


def answered(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    engine.run(requests)
    assert engine.is_idle
    assert all(request.finish == "length" for request in requests)
    return [(request.tokens, request.log_probabilities) for request in requests]


def each_alone(model: PagedModel, requests: Sequence[Request]) -> list[Answer]:
    """Each answer from an empty cache."""
    answers = []
    for request in requests:
        engine = Engine(model, cache_bytes=CACHE)
        fresh = replace(request, tokens=[], log_probabilities=[], finish=None)
        answers += answered(engine, [fresh])
    return answers


@torch.no_grad()
def own_scores(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """transformers' log-probabilities (answer, vocabulary) before each of the answer's tokens."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    return torch.log_softmax(logits[-len(answer) - 1 : -1].float(), -1)  # PEFT's also has virtual tokens


def assert_own(model: Any, prompt: Sequence[int], answer: Answer, tolerance: float = 1e-5) -> None:
    """A greedy answer is the model's own: each token the likeliest, by a full forward pass over all before it."""
    tokens, logs = answer
    scores = own_scores(model, prompt, tokens)
    own = scores[torch.arange(len(tokens)), torch.tensor(tokens)]
    torch.testing.assert_close(torch.tensor(logs), own, rtol=tolerance, atol=tolerance)
    assert (scores.max(-1).values - own).max() < 1e-4, "only a tie may be decided otherwise"


def in_company(engine: Engine, requests: Sequence[Request], seed: int) -> None:
    """Answer the requests while they and others join and leave at different steps."""
    generator = torch.Generator().manual_seed(seed)

    def number(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    order = torch.randperm(len(requests), generator=generator).tolist()
    others: list[Request] = []
    steps = 0
    while order or not engine.is_idle:
        for _ in range(min(number(5), len(order))):
            engine.submit(requests[order.pop()])
        if number(3) == 0 and order:
            others += requests_of(prompts_of(1 + number(40), seed=steps), SAMPLED)
            engine.submit(others[-1])
        if number(4) == 0 and others:
            others.pop(0).cancel()
        engine.step()
        steps += 1
