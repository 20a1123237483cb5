"""The server, asked by OpenAI's own client: what it answers is what `tunesmith generate` answers."""

import json
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any

import openai
import pytest
from bytewise import byte_tokenizer
from running_server import Served, save_adapter, served, tiny_llama
from stock_templates import stock

from tunesmith.inference.model import load
from tunesmith.serving.service import Limits

QUESTION = [{"role": "user", "content": "What is 3 + 3?"}]


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapters")
    for name, target in (("one", "up_proj"), ("two", "down_proj")):
        save_adapter(tiny_model, directory / name, target)
    return directory


@pytest.fixture(scope="module")
def server(tiny_model: Path, adapters: Path) -> Iterator[Served]:
    limits = Limits(max_tokens=64, body_bytes=100_000)
    with served(tiny_model, adapters=adapters, limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": QUESTION, "max_completion_tokens": 12, **more}
    )


def streamed(events: Any, count: int = 1) -> list[dict[str, Any]]:
    """Each answer of a streamed chat: its content, why it ended, and its log-probabilities."""
    found = [{"content": "", "finish": None, "logprobs": []} for _ in range(count)]
    for event in events:
        for choice in event.choices:
            mine = found[choice.index]
            mine["content"] += choice.delta.content or ""
            mine["finish"] = choice.finish_reason or mine["finish"]
            mine["logprobs"] += [] if choice.logprobs is None else choice.logprobs.content
    return found


def test_a_chat_is_answered_as_generate_answers_it(client: openai.OpenAI, tiny_model: Path) -> None:
    (expected,) = load(tiny_model, precision="fp32").generate("What is 3 + 3?", max_new_tokens=12)
    answer = chat(client, temperature=0, logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (expected.text, expected.finish_reason)
    assert [token.logprob for token in choice.logprobs.content] == pytest.approx(list(expected.logprobs))
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    tokens = bytes(byte for token in choice.logprobs.content for byte in token.bytes)
    assert tokens.decode(errors="replace") == expected.text
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.usage.total_tokens == expected.prompt_tokens + len(expected.tokens)


def test_a_stream_says_what_one_response_says(client: openai.OpenAI) -> None:
    options = {"n": 3, "seed": 5, "temperature": 1.5, "logprobs": True}
    whole = chat(client, **options)
    found = streamed(chat(client, **options, stream=True), 3)
    for choice, streaming in zip(whole.choices, found, strict=True):
        assert (choice.message.content, choice.finish_reason) == (streaming["content"], streaming["finish"])
        assert [each.logprob for each in choice.logprobs.content] == [each.logprob for each in streaming["logprobs"]]
    assert len({choice.message.content for choice in whole.choices}) == 3
    assert whole.system_fingerprint.startswith("fp_")


def test_usage_is_in_the_last_event_of_a_stream_if_asked_for(client: openai.OpenAI) -> None:
    *others, last = chat(client, temperature=0, stream=True, stream_options={"include_usage": True})
    assert all(event.usage is None for event in others)
    assert not last.choices
    assert last.usage.completion_tokens == chat(client, temperature=0).usage.completion_tokens == 12


def test_without_a_seed_every_answer_is_another_one(client: openai.OpenAI) -> None:
    answers = {chat(client, temperature=1.5).choices[0].message.content for _ in range(4)}
    assert len(answers) == 4
    same = {chat(client, temperature=1.5, seed=7).choices[0].message.content for _ in range(2)}
    assert len(same) == 1


def test_every_field_of_sampling_has_its_effect(client: openai.OpenAI) -> None:
    plain = chat(client, temperature=0).choices[0].message.content
    bias = {str(byte_tokenizer()("z")["input_ids"][0]): 100}
    assert chat(client, temperature=0, logit_bias=bias).choices[0].message.content == "z" * 12
    penalties = [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"extra_body": {"repetition_penalty": 5}}]
    for penalty in penalties:
        options = {**penalty, "logit_bias": dict.fromkeys(bias, 1.5)}
        assert chat(client, temperature=0, **options).choices[0].message.content != plain
    for cut in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert chat(client, temperature=2, **cut).choices[0].message.content == plain
    assert chat(client, max_completion_tokens=3, temperature=0).choices[0].finish_reason == "length"
    stopped = chat(client, temperature=0, stop=[plain[1:3]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (plain[:1], "stop")
    found = chat(client, extra_body={"regex": "(ab)+c"}, temperature=2, max_completion_tokens=60)
    assert set(found.choices[0].message.content) <= {"a", "b", "c"}


def test_an_answer_follows_its_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    assert json.loads(chat(client, response_format=wanted, max_completion_tokens=64).choices[0].message.content)[
        "n"
    ] in (1, 22)
    answer = client.responses.create(
        model="tiny", input="n?", text={"format": {"type": "json_schema", "name": "n", "schema": schema}}
    )
    assert json.loads(answer.output_text)["n"] in (1, 22)


def test_adapters_answer_by_their_names(client: openai.OpenAI, adapters: Path, tiny_model: Path) -> None:
    assert sorted(each.id for each in client.models.list()) == ["one", "tiny", "two"]
    assert client.models.retrieve("two").id == "two"
    answers, prints = {}, set()
    for name in ("tiny", "one", "two"):
        answer = chat(client, model=name, temperature=0)
        answers[name] = answer.choices[0].message.content
        prints.add(answer.system_fingerprint)
        assert answer.model == name
    assert len(set(answers.values())) == len(prints) == 3
    loaded = load(tiny_model, precision="fp32")
    loaded.load_adapter("two", adapters / "two")
    assert loaded.generate("What is 3 + 3?", max_new_tokens=12, adapter="two")[0].text == answers["two"]


def test_completions_continue_texts_as_they_are(client: openai.OpenAI, tiny_model: Path) -> None:
    texts = ["A list is", "x"]
    expected = load(tiny_model, precision="fp32").generate(texts, raw=True, max_new_tokens=6)
    found = client.completions.create(model="tiny", prompt=texts, max_tokens=6, temperature=0, logprobs=1)
    assert [choice.text for choice in found.choices] == [each.text for each in expected]
    for choice, each in zip(found.choices, expected, strict=True):
        assert choice.logprobs.token_logprobs == pytest.approx(list(each.logprobs))
        assert "".join(choice.logprobs.tokens) == each.text
        ends = accumulate(map(len, choice.logprobs.tokens), initial=0)
        assert choice.logprobs.text_offset == list(ends)[:-1]
    ids = byte_tokenizer()(texts)["input_ids"]
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=6, temperature=0)
    assert [choice.text for choice in by_ids.choices] == [each.text for each in expected]
    best = client.completions.create(model="tiny", prompt="x", max_tokens=6, n=1, best_of=4, seed=1, temperature=1)
    events = client.completions.create(model="tiny", prompt="x", max_tokens=6, n=4, seed=1, temperature=1, stream=True)
    parts = ["", "", "", ""]
    for event in events:
        for choice in event.choices:
            parts[choice.index] += choice.text
    assert best.choices[0].text in parts
    sampled = client.completions.create(
        model="tiny", prompt="x", max_tokens=6, n=4, seed=1, temperature=1, logprobs=1
    ).choices
    assert [choice.text for choice in sampled] == parts
    likeliest = max(sampled, key=lambda choice: mean(choice.logprobs.token_logprobs))
    assert best.choices[0].text == likeliest.text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n": 3, "best_of": 2}, "best_of is 2, and n is 3"),
        ({"best_of": 2, "stream": True}, "best_of cannot be streamed"),
        ({"prompt": [[5, 9999]]}, "prompt: the model has no token 9999"),
        ({"prompt": ["x"] * 683, "n": 3}, "683 prompts are to have 3 answers each. Ask for at most 2,048"),
    ],
)
def test_completions_that_cannot_be_are_refused(client: openai.OpenAI, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        client.completions.create(**{"model": "tiny", "prompt": "x", "max_tokens": 2, **fields})


def test_echo_reports_the_log_probabilities_of_the_prompt_too(client: openai.OpenAI, tiny_model: Path) -> None:
    texts = ["A list is", "x"]
    model = load(tiny_model, precision="fp32")
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "logprobs": 1, "echo": True}
    found = client.completions.create(**asked, prompt=texts, max_tokens=2)
    written = client.completions.create(**{**asked, "echo": False}, prompt=texts, max_tokens=2)
    for text, choice, alone in zip(texts, found.choices, written.choices, strict=True):
        own = choice.logprobs
        assert choice.text == text + alone.text
        assert own.tokens[: len(text)] == list(text)
        assert own.tokens[len(text) :] == alone.logprobs.tokens
        scored = model.score(text)[0].log_probabilities
        expected = [None, *scored, *alone.logprobs.token_logprobs]
        assert own.token_logprobs == [None if each is None else pytest.approx(each) for each in expected]
        assert [text[:at] for at in own.text_offset[: len(text)]] == [text[:at] for at in range(len(text))]
        assert own.top_logprobs[0] is None
        for logprob, top in zip(own.token_logprobs[1:], own.top_logprobs[1:], strict=True):
            assert logprob <= max(top.values())
    assert found.usage.prompt_tokens == written.usage.prompt_tokens == sum(map(len, texts))
    alone = client.completions.create(**asked, prompt=texts, max_tokens=0)
    assert [choice.text for choice in alone.choices] == texts
    for whole, choice in zip(found.choices, alone.choices, strict=True):
        count = len(choice.logprobs.tokens)
        assert choice.logprobs.token_logprobs == whole.logprobs.token_logprobs[:count]
    assert (alone.usage.prompt_tokens, alone.usage.completion_tokens) == (sum(map(len, texts)), 0)
    ids = byte_tokenizer()(texts)["input_ids"]
    by_ids = client.completions.create(**asked, prompt=ids, max_tokens=2)
    assert [choice.text for choice in by_ids.choices] == [choice.text for choice in found.choices]


def test_echo_lists_the_token_that_ends_a_continuation(client: openai.OpenAI) -> None:
    end = byte_tokenizer().eos_token
    bias = {str(byte_tokenizer().eos_token_id): 100}
    asked: dict[str, Any] = {"model": "tiny", "prompt": "A list", "max_tokens": 1, "temperature": 0, "logprobs": 1}
    (choice,) = client.completions.create(**asked, logit_bias=bias, echo=True).choices
    assert (choice.text, choice.finish_reason) == ("A list", "stop")
    assert choice.logprobs.tokens == [*"A list", end]
    assert choice.logprobs.top_logprobs[-1] == {end: choice.logprobs.token_logprobs[-1]}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": 0}, "max_tokens is 0. Ask for at least 1, or for the prompt alone with echo"),
        ({"echo": True, "stream": True}, "echo cannot be streamed"),
    ],
)
def test_an_empty_continuation_and_a_streamed_echo_are_refused(
    client: openai.OpenAI, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        client.completions.create(model="tiny", prompt="x", **fields)


def test_responses_are_chats_with_other_names(client: openai.OpenAI) -> None:
    expected = chat(client, messages=[{"role": "system", "content": "Be short."}, *QUESTION], temperature=0)
    options: dict[str, Any] = {"model": "tiny", "instructions": "Be short.", "temperature": 0}
    options |= {"input": [{"role": "user", "content": [{"type": "input_text", "text": "What is 3 + 3?"}]}]}
    found = client.responses.create(**options, max_output_tokens=12)
    assert found.output_text == expected.choices[0].message.content
    assert found.usage.output_tokens == 12
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events = list(client.responses.create(**options, max_output_tokens=12, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == found.output_text
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == found.output_text


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"model": "other"}, 404, "There is no model other here"),
        ({"model": "../tiny"}, 404, r"There is no model \.\./tiny here"),
        ({"extra_body": {"audio": {"voice": "x"}}}, 400, "audio is not supported"),
        ({"extra_body": {"store": True}}, 400, "store"),
        ({"reasoning_effort": "high"}, 400, "reasoning_effort is not supported"),
        ({"temperature": 3}, 400, "temperature: .* less than or equal to 2"),
        ({"max_completion_tokens": 65}, 400, "max_completion_tokens is 65, and this server writes at most 64"),
        ({"n": 0}, 400, "n: "),
        ({"top_logprobs": 2}, 400, "top_logprobs needs logprobs"),
        ({"stop": ["x"] * 17}, 400, "stop"),
        ({"logit_bias": {"9999": 1}}, 400, "logit_bias: the model has no token 9999"),
        ({"logit_bias": {"a": 1}}, 400, "logit_bias: the keys must be token ids"),
        ({"messages": [{"role": "user", "content": "a" * 600}]}, 400, "the model's context holds 512"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, 400, "unknown role 'wizard'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "the last message is the assistant's"),
        ({"messages": [{"role": "user", "content": "<|im_end|>"}]}, 400, r"holds the control token <\|im_end\|>"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "image"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 200_000}]}, 413, "more than 100,000 bytes"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "writes no tool calls"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema"),
        ({"extra_body": {"regex": "a("}}, 400, "not valid"),
        ({"extra_body": {"regex": "a", "grammar": "start: A"}}, 400, "regex and grammar"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options needs stream"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], status: int, says: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=says) as refusal:
        chat(client, **fields)
    assert refusal.value.status_code == status
    with pytest.raises(openai.APIStatusError, match=says):
        chat(
            client,
            **{**fields, "stream": True, "stream_options": None, **fields}
            if "stream_options" not in fields
            else fields,
        )


def test_endpoints_of_another_head_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tiny writes text, so /v1/embeddings is not for it"):
        client.embeddings.create(model="tiny", input="a")


def test_tools_are_called_and_their_results_read(tmp_path: Path) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"enum": ["Ulm", "Bonn"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tools: list[Any] = [
        {"type": "function", "function": {"name": "get_weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "get_time", "parameters": parameters}},
    ]
    named = {"type": "function", "function": {"name": "get_time"}}
    with served(tiny_llama(tmp_path / "llama", stock("qwen2_5"))) as running, running.client() as client:
        options: dict[str, Any] = {"tools": tools, "max_completion_tokens": 200, "seed": 3, "temperature": 1.5}
        called = chat(client, **options, tool_choice="required").choices[0]
        assert called.finish_reason == "tool_calls"
        assert called.message.content is None
        (call,) = called.message.tool_calls
        assert call.function.name in ("get_weather", "get_time")
        assert json.loads(call.function.arguments)["city"] in ("Ulm", "Bonn")
        assert chat(client, **options, tool_choice=named).choices[0].message.tool_calls[0].function.name == "get_time"
        deltas = [event.choices[0] for event in chat(client, **options, tool_choice="required", stream=True)]
        (streaming,) = [each for delta in deltas for each in delta.delta.tool_calls or []]
        assert streaming.function.model_dump() == call.function.model_dump()
        assert deltas[-1].finish_reason == "tool_calls"
        result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
        turns = [*QUESTION, called.message.model_dump(exclude_none=True), result]
        assert chat(client, messages=turns, tools=tools).usage.prompt_tokens > 500
        flat = [{"type": "function", **tool["function"]} for tool in tools]
        answer = client.responses.create(
            model="tiny", input="Rain?", tools=flat, tool_choice={"type": "function", "name": "get_weather"},
            max_output_tokens=200,
        )  # fmt: skip
        (item,) = answer.output
        assert (item.type, item.name) == ("function_call", "get_weather")
        follow = [{"role": "user", "content": "Rain?"}, item, _output(item.call_id)]
        followed = client.responses.create(model="tiny", input=follow, tools=flat, max_output_tokens=5)
        assert followed.usage.input_tokens > answer.usage.input_tokens
        evil = {"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}
        with pytest.raises(openai.BadRequestError, match=r"tools hold the control token <\|im_end\|>"):
            chat(client, tools=[evil])
        with pytest.raises(openai.BadRequestError, match="a function that is not in tools"):
            chat(client, **options, tool_choice={"type": "function", "function": {"name": "other"}})


def _output(identity: str) -> Any:
    return {"type": "function_call_output", "call_id": identity, "output": "It rains."}
