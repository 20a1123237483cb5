"""The check of token ids before the first step catches every fault of the data pipeline."""

import numpy as np
import pytest
from stock_templates import stock

from tunesmith.data.check import find_problem
from tunesmith.data.example import Example, Source
from tunesmith.data.render import Renderer, Rendering, Tokenized

CHAT = (
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
)


@pytest.fixture(params=["llama3", "gemma3", "qwen2_5", "phi3"])
def rendered(request: pytest.FixtureRequest) -> tuple[Renderer, Rendering, Tokenized]:
    renderer = Renderer(stock(request.param))
    (rendering,) = renderer.render(Example(Source("rows.jsonl", 1), messages=CHAT))
    return renderer, rendering, renderer.tokenize_many([rendering])[0]


def test_a_correct_rendering_has_no_fault(rendered: tuple[Renderer, Rendering, Tokenized]) -> None:
    assert find_problem(*rendered) is None


def test_a_row_without_loss_tokens_is_a_fault(rendered: tuple[Renderer, Rendering, Tokenized]) -> None:
    """Guards against https://github.com/unslothai/unsloth/issues/1290."""
    renderer, rendering, (ids, loss_mask) = rendered
    assert "no token of it has loss" in (find_problem(renderer, rendering, (ids, np.zeros_like(loss_mask))) or "")
    only_first = np.arange(len(ids)) == 0  # it is never predicted
    assert "no token of it has loss" in (find_problem(renderer, rendering, (ids, only_first)) or "")


@pytest.mark.parametrize("turn", [0, 1])
def test_an_end_of_turn_without_loss_is_a_fault_in_any_turn(
    rendered: tuple[Renderer, Rendering, Tokenized], turn: int
) -> None:
    """Guards against https://github.com/huggingface/trl/issues/4147."""
    renderer, rendering, (ids, loss_mask) = rendered
    without = loss_mask.copy()
    without[np.flatnonzero(loss_mask & ~np.append(loss_mask[1:], False))[turn]] = False
    assert "would not learn to stop" in (find_problem(renderer, rendering, (ids, without)) or "")


def test_a_second_or_missing_bos_token_is_a_fault() -> None:
    """Guards against https://github.com/vllm-project/vllm/issues/27486."""
    renderer = Renderer(stock("llama3"))
    (rendering,) = renderer.render(Example(Source("rows.jsonl", 1), messages=CHAT))
    ((ids, loss_mask),) = renderer.tokenize_many([rendering])
    twice = np.concatenate([ids[:1], ids]), np.concatenate([loss_mask[:1], loss_mask])
    assert "2 beginning-of-sequence tokens, but the template writes 1" in (
        find_problem(renderer, rendering, twice) or ""
    )
    assert "0 beginning-of-sequence" in (find_problem(renderer, rendering, (ids[1:], loss_mask[1:])) or "")


def test_a_document_without_its_end_token_is_a_fault() -> None:
    renderer = Renderer(stock("qwen2_5"))
    (rendering,) = renderer.render(Example(Source("a.txt", 1), text="A document."))
    ((ids, loss_mask),) = renderer.tokenize_many([rendering])
    assert find_problem(renderer, rendering, (ids, loss_mask)) is None
    assert "learn to stop" in (find_problem(renderer, rendering, (ids[:-1], loss_mask[:-1])) or "")
