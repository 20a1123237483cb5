"""The last look before the first step, on the ids themselves: whatever went wrong on the way, it is seen here."""

import numpy as np
import pytest
from stock_templates import stock

from tunesmith.data.check import fault
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


def test_what_is_whole_has_no_fault(rendered: tuple[Renderer, Rendering, Tokenized]) -> None:
    assert fault(*rendered) is None


def test_unsloth_1290_a_row_of_which_nothing_is_learnt_is_seen(rendered: tuple[Renderer, Rendering, Tokenized]) -> None:
    renderer, rendering, (ids, loss_mask) = rendered
    assert "no token of it would be learnt" in (fault(renderer, rendering, (ids, np.zeros_like(loss_mask))) or "")
    only_first = np.arange(len(ids)) == 0  # it is never predicted
    assert "no token of it would be learnt" in (fault(renderer, rendering, (ids, only_first)) or "")


@pytest.mark.parametrize("turn", [0, 1])
def test_trl_4147_an_end_of_turn_that_is_not_learnt_is_seen_in_any_turn(
    rendered: tuple[Renderer, Rendering, Tokenized], turn: int
) -> None:
    renderer, rendering, (ids, loss_mask) = rendered
    without = loss_mask.copy()
    without[np.flatnonzero(loss_mask & ~np.append(loss_mask[1:], False))[turn]] = False
    assert "would not learn to stop" in (fault(renderer, rendering, (ids, without)) or "")


def test_vllm_27486_a_second_or_a_missing_beginning_of_sequence_is_seen() -> None:
    renderer = Renderer(stock("llama3"))
    (rendering,) = renderer.render(Example(Source("rows.jsonl", 1), messages=CHAT))
    ((ids, loss_mask),) = renderer.tokenize_many([rendering])
    twice = np.concatenate([ids[:1], ids]), np.concatenate([loss_mask[:1], loss_mask])
    assert "2 beginning-of-sequence tokens, where the template writes 1" in (fault(renderer, rendering, twice) or "")
    assert "0 beginning-of-sequence" in (fault(renderer, rendering, (ids[1:], loss_mask[1:])) or "")


def test_a_document_without_its_end_is_seen() -> None:
    renderer = Renderer(stock("qwen2_5"))
    (rendering,) = renderer.render(Example(Source("a.txt", 1), text="A document."))
    ((ids, loss_mask),) = renderer.tokenize_many([rendering])
    assert fault(renderer, rendering, (ids, loss_mask)) is None
    assert "learn to stop" in (fault(renderer, rendering, (ids[:-1], loss_mask[:-1])) or "")
