"""Tool calls are read in the form in which a template writes them, however the answer is cut into pieces."""

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stock_templates import STOCK, stock

from tunesmith.data.template import ChatTemplate, special_tokens
from tunesmith.inference.tool_calls import FORMS, ToolCall, ToolText, form_of

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "It does something.",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string"}, "count": {"type": "integer"}, "list": {"type": "array"}},
            },
        },
    }
    for name in ("first_tool", "second.tool-2")
]
WITHOUT = {
    "cohere",
    "cohere2",
    "deepseek_r1_distill",
    "gemma",
    "gemma3",
    "lfm2",
    "llama3",
    "phi3",
    "phi3_5",
    "qwen2_5_vl",
}
"""Templates that render no tool calls."""
UNKNOWN = {"deepseekv3", "gptoss", "muse_glimmer"}
"""Templates in whose form calls are not read: their arguments are no object, or they are messages of their own."""


READ = sorted(set(STOCK) - WITHOUT - UNKNOWN)


@cache
def form_in(name: str) -> Any:
    """The form of a template's calls."""
    tokenizer = stock(name)
    return form_of(ChatTemplate(tokenizer), sorted(special_tokens(tokenizer)))


def test_the_form_of_every_template_that_writes_calls_is_found() -> None:
    assert {name for name in STOCK if form_in(name) is None} == WITHOUT | UNKNOWN
    read = {form_in(name).read for name in READ}
    assert {form.read for form in FORMS} - read == {FORMS[4].read}  # Mistral's template is not among trl's


texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="<>|\"'\\"), max_size=12
)
names = st.sampled_from(READ)
arguments = st.fixed_dictionaries({"text": texts, "count": st.integers(-99, 99), "list": st.lists(st.integers(0, 9))})


@settings(max_examples=60)
@given(
    name=st.sampled_from(READ),
    calls=st.lists(arguments, min_size=1, max_size=2),
    data=st.data(),
)
def test_calls_that_a_template_writes_are_read_back(name: str, calls: Any, data: st.DataObject) -> None:
    tokenizer, form = stock(name), form_in(name)
    if form.at_the_beginning:
        calls = calls[:1]  # Llama's template writes one call in a turn
    expected = [ToolCall(TOOLS[number % 2]["function"]["name"], each) for number, each in enumerate(calls)]
    if form.read.__name__ == "_python":
        expected = [ToolCall("first_tool", call.arguments) for call in expected]
    written = [
        {"type": "function", "id": "call00001", "function": {"name": call.name, "arguments": call.arguments}}
        for call in expected
    ]
    chat = [{"role": "user", "content": "Do it."}, {"role": "assistant", "content": "", "tool_calls": written}]
    template = ChatTemplate(tokenizer)
    text = template.text(chat, TOOLS)
    answer = text[text.rindex("Do it.") :]
    answer = answer[answer.index(form.start) :]
    ends = [
        answer.find(token)
        for token in (*special_tokens(tokenizer), "<|tool_response>")
        if token in answer and token not in form.markers
    ]
    answer = answer[: min(ends, default=len(answer))]
    before = "" if form.at_the_beginning else data.draw(st.sampled_from(["", "I look.\n", "a < b "]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(before + answer)), max_size=5)))
    reader = ToolText(form, TOOLS)
    pieces = [(before + answer)[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
    content = "".join(reader.add(piece) for piece in pieces)
    rest, found = reader.finish()
    assert content + rest == before
    assert found == expected


@settings(max_examples=100)
@given(form=st.sampled_from(FORMS), text=st.text('<>tol_ca{}"[]:|TOL', max_size=30), data=st.data())
def test_what_is_no_call_is_content_to_the_last_character(form: Any, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    reader = ToolText(form, TOOLS)
    content = "".join(reader.add(text[start:end]) for start, end in zip([0, *cuts], [*cuts, None], strict=True))
    rest, calls = reader.finish()
    assert not calls
    assert content + rest == text


@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS] [{"name": "a", "arguments": {"x": [1, {"y": "]"}]}}]',
        '[TOOL_CALLS]a[ARGS]{"x": [1, {"y": "]"}]}',
        '[TOOL_CALLS]a{"x": [1, {"y": "]"}]}',
        '[TOOL_CALLS]a[CALL_ID]abc123[ARGS]{"x": [1, {"y": "]"}]}',
    ],
)
def test_mistral_calls_are_read_in_the_older_and_the_newer_form(text: str) -> None:
    reader = ToolText(FORMS[4], TOOLS)
    assert reader.add(text) == ""
    assert reader.finish() == ("", [ToolCall("a", {"x": [1, {"y": "]"}]})])


def test_a_grammar_asks_for_one_call_of_one_of_the_tools() -> None:
    grammar = FORMS[0].grammar(TOOLS)
    assert grammar is not None
    head, call = grammar.splitlines()
    assert head == 'start: "<tool_call>\\n" call "\\n</tool_call>"'
    names = [each["properties"]["name"]["const"] for each in json.loads(call.removeprefix("call: %json "))["anyOf"]]
    assert names == ["first_tool", "second.tool-2"]
    assert FORMS[1].grammar(TOOLS) is None
