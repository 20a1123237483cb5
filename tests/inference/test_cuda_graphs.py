"""What a CUDA graph replays, without the recording: steps in static buffers, filled up, have the same bits."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch
from families import config_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.inference.cuda_graphs import CudaGraphs, StaticStep, batch_size
from tunesmith.inference.engine import Engine
from tunesmith.inference.paged_model import PagedModel, Piece, paged_model
from tunesmith.inference.request import Request
from tunesmith.inference.sampling import Sampling
from tunesmith.ops import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="only kernels read a step's rows from its buffers")

CACHE = 2**20


def model_of(family: str) -> PagedModel:
    torch.manual_seed(0)
    config = config_of(family, 67, eos_token_id=None, pad_token_id=None, initializer_range=0.3)
    paged = paged_model(AutoModelForCausalLM.from_config(config).eval())
    assert paged is not None
    return paged


def requests_of(count: int) -> list[Request]:
    """Prompts and answers of different lengths, so that the batch shrinks."""
    prompts = [[3 + number] * (1 + 9 * number % 40) for number in range(count)]
    return [Request(prompt, Sampling(4 + 3 * number), number=number) for number, prompt in enumerate(prompts)]


Record = Callable[[PagedModel, StaticStep], Callable[[], Tensor]]


def with_graphs(model: PagedModel, record: Record) -> Engine:
    """An engine that replays steps as on CUDA."""
    engine = Engine(model, cache_bytes=CACHE)
    model.allocate(engine.pages.total + 1)
    engine.graphs = CudaGraphs(model, 64, engine.pages.total, engine.pages.total, record)
    return engine


def answers(engine: Engine, requests: Sequence[Request]) -> list[tuple[list[int], list[float]]]:
    engine.run(requests)
    return [(request.tokens, request.log_probabilities) for request in requests]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
def test_steps_in_filled_up_static_buffers_have_the_bits_of_other_steps(family: str) -> None:
    model = model_of(family)
    replays: list[int] = []

    def record(_: PagedModel, step: StaticStep) -> Callable[[], Tensor]:
        def replay() -> Tensor:
            logits = step.run()
            replays.append(len(logits))
            return logits

        return replay

    expected = answers(Engine(model, cache_bytes=CACHE), requests_of(7))
    assert answers(with_graphs(model, record), requests_of(7)) == expected
    assert set(replays) == {1, 2, 4, 8}
    assert len(replays) > 15


def test_rows_that_fill_up_a_batch_write_to_no_page_of_a_sequence() -> None:
    model = model_of("llama")
    model.allocate(4)
    model.compute([Piece([7] * 20, 0, [0, 1], 20)])
    before = deepcopy(model.caches)
    step = StaticStep(model, 4, 3, scratch=3)
    step.fill([Piece([9], 20, [0, 1], 0)])
    step.run()
    for layer, cache in model.caches.items():
        changed = cache.keys != before[layer].keys  # (pages, kv_heads, dim, PAGE)
        assert changed[1, :, :, 4].all()
        assert not changed[0].any()
        assert not changed[1, :, :, [*range(4), *range(5, 16)]].any()
        assert not changed[2].any()
        assert changed[3, :, :, 0].any()


def test_a_batch_has_the_next_power_of_two_rows() -> None:
    assert [batch_size(rows) for rows in (1, 2, 3, 4, 5, 9, 33, 64)] == [1, 2, 4, 4, 8, 16, 64, 64]


def test_a_model_that_cannot_be_recorded_is_computed_step_by_step() -> None:
    model = model_of("llama")
    tries: list[int] = []

    def record(_: PagedModel, step: StaticStep) -> Callable[[], Tensor]:
        tries.append(len(step.run()))
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = answers(Engine(model, cache_bytes=CACHE), requests_of(3))
    engine = with_graphs(model, record)
    assert answers(engine, requests_of(3)) == expected
    assert len(tries) == 1
    assert engine.graphs is not None
    assert engine.graphs.failure == "operation not permitted when stream is capturing"


def test_steps_of_prompts_adapters_and_other_caches_are_not_replayed() -> None:
    model = model_of("llama")
    model.allocate(3)
    graphs = CudaGraphs(model, 2, 2, 2, lambda _, step: step.run)
    token = Piece([5], 0, [0], 0)
    model.compute([token])
    logits = graphs.logits([token], [])
    assert logits is not None
    assert torch.equal(logits, model.compute([token]))
    for pieces, adapters in (
        ([Piece([5, 6], 0, [0], 1)], []),
        ([Piece([5], 0, [0], 1)], []),
        ([Piece([-1], 0, [0], 0)], []),
        ([token] * 3, []),
        ([token], [(0, 1, [])]),
    ):
        assert graphs.logits(pieces, adapters) is None
    model.allocate(3)
    assert graphs.logits([token], []) is None
