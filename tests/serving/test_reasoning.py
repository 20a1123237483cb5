"""What a model reasons is apart from what it answers, for templates that know reasoning: at once and streamed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from running_server import Served, served, tiny_llama
from stock_templates import stock

from tunesmith.inference.reasoning_text import ReasoningForm, ReasoningText
from tunesmith.inference.tool_calls import FORMS, ToolText
from tunesmith.serving.choices import Choice, TokenTexts
from tunesmith.serving.engine_thread import Piece

QUESTION: list[Any] = [{"role": "user", "content": "What is 3 + 3?"}]
REASONS = {"regex": r"<think>\n[a-z]{12}\n</think>\n\n[A-Z]{7}"}
TOKENS = len("<think>\n" + 12 * "a" + "\n</think>\n\n" + 7 * "A")  # a token is a byte


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tiny_llama(tmp_path_factory.mktemp("qwen") / "llama", stock("qwen3"))) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def chat(client: openai.OpenAI, **more: Any) -> Any:
    fields = {"model": "tiny", "messages": QUESTION, "seed": 3, "max_completion_tokens": 100, **more}
    return client.chat.completions.create(**fields)


def test_a_chat_has_reasoning_beside_its_content_and_streams_the_same(client: openai.OpenAI) -> None:
    answer = chat(client, extra_body=REASONS)
    message = answer.choices[0].message
    assert (len(message.reasoning_content), len(message.content)) == (12, 7)
    assert message.reasoning_content.islower()
    assert message.content.isupper()
    assert answer.usage.completion_tokens == TOKENS
    assert answer.usage.completion_tokens_details.reasoning_tokens == len("<think>\n" + 12 * "a" + "\n</think>")
    deltas = [event.choices[0].delta for event in chat(client, extra_body=REASONS, stream=True)]
    assert "".join(getattr(each, "reasoning_content", None) or "" for each in deltas) == message.reasoning_content
    assert "".join(each.content or "" for each in deltas) == message.content
    again = chat(client, messages=[*QUESTION, message.model_dump(exclude_none=True), *QUESTION], extra_body=REASONS)
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens


def test_an_answer_that_ends_within_its_reasoning_has_no_content(client: openai.OpenAI) -> None:
    choice = chat(client, extra_body=REASONS, max_completion_tokens=14).choices[0]
    assert (len(choice.message.reasoning_content), choice.message.content) == (6, "")
    assert choice.finish_reason == "length"


def test_an_answer_without_reasoning_is_content(client: openai.OpenAI) -> None:
    message = chat(client, extra_body={"regex": "[A-Z]{7}"}).choices[0].message
    assert len(message.content) == 7
    assert not hasattr(message, "reasoning_content")


def test_responses_have_reasoning_items_and_read_them(client: openai.OpenAI, server: Served) -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"enum": [22]}}
    plain = client.responses.create(model="tiny", input="n?", text={"format": schema})
    assert [item.type for item in plain.output] == ["message"]
    bias = server.service.default  # responses have no regex: the default of the sampling stands for one
    try:
        server.service.default = type(bias)(temperature=1.0, regex=REASONS["regex"])
        whole = client.responses.create(model="tiny", input="Hi", max_output_tokens=100)
        events = list(client.responses.create(model="tiny", input="Hi", max_output_tokens=100, stream=True))
    finally:
        server.service.default = bias
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert len(whole.output[0].content[0].text) == 12
    assert len(whole.output_text) == 7
    assert whole.usage.output_tokens_details.reasoning_tokens == 29
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    for kind, index in (("reasoning_text", 0), ("output_text", 1)):
        deltas = [event for event in events if event.type == f"response.{kind}.delta"]
        assert {event.output_index for event in deltas} == {index}
        assert "".join(event.delta for event in deltas) == last.output[index].content[0].text
    turns = [{"role": "user", "content": "Hi"}, *last.output, {"role": "user", "content": "And?"}]
    followed = client.responses.create(model="tiny", input=turns, max_output_tokens=3)
    alone = client.responses.create(model="tiny", input=[turns[0], last.output[1], turns[-1]], max_output_tokens=3)
    assert followed.usage.input_tokens >= alone.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match=r"input\.1 has a part that is not text"):
        client.responses.create(model="tiny", input=[turns[0], {"type": "reasoning", "content": 5}])  # type: ignore[list-item]


def test_tool_calls_follow_reasoning() -> None:
    reasoning = ReasoningText(ReasoningForm("<think>", "</think>"))
    choice = Choice(reasoning, ToolText(FORMS[0], []), TokenTexts(stock("qwen3")), with_logprobs=False)
    text = '<think>\nWeather.\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    tokens = tuple(stock("qwen3")(text)["input_ids"])
    for character in text:
        choice.take(Piece(character, (), (), ()))
    from tunesmith.inference.writing import Generation

    choice.take(Piece("", (), (), (), Generation(text, tokens, (0.0,) * len(tokens), "stop", 1)))
    assert (choice.message["reasoning_content"], choice.message["content"]) == ("Weather.", None)
    assert choice.message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert choice.finish_reason == "tool_calls"


def test_where_the_prompt_opens_the_reasoning_only_unbound_answers_have_some(tmp_path: Path) -> None:
    with served(tiny_llama(tmp_path / "llama", stock("qwen3_5_think"))) as running, running.client() as client:
        message = chat(client, extra_body={"regex": "[A-Z]{7}"}).choices[0].message
        assert (len(message.content), hasattr(message, "reasoning_content")) == (7, False)
        message = chat(client, max_completion_tokens=9).choices[0].message
        assert message.content == ""
        assert message.reasoning_content
