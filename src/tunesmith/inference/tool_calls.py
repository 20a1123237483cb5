"""Tool calls in an answer: found in its text in the form that the model's own chat template writes them in.

There is no table of models: a call is rendered with the template, and the form that reads it back is the template's.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.example import Message
from tunesmith.data.template import ChatTemplate, UnusableError
from tunesmith.inference.text_stream import overlap

Tools = Sequence[Mapping[str, Any]]
"""`{type: function, function: {name, description, parameters}}` each, as chat templates take them."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool's name and the arguments that it is called with."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCallForm:
    """How a template writes tool calls.

    Attributes:
        start: what a call begins with.
        read: the calls in a text that begins with `start`; ValueError (KeyError, …) if it is anything else.
        markers: the special tokens in it, which an answer's text otherwise leaves out.
        at_the_beginning: whether `start` begins a call at the beginning of the answer only.
        around: for calls in JSON: the text before the object, the key of its arguments, and the text after it.
    """

    start: str
    read: Callable[[str, Tools], list[ToolCall]]
    markers: tuple[str, ...] = ()
    at_the_beginning: bool = False
    around: tuple[str, str, str] | None = None

    def grammar(self, tools: Tools) -> str | None:
        """A grammar (Lark's syntax, as llguidance reads it) of one call of one of the tools; None if there is none."""
        if self.around is None:
            return None
        before, key, after = self.around
        choices = [_object({"name": {"const": name}, key: schema}) for name, schema in _parameters(tools).items()]
        parts = [json.dumps(before) if before else "", "call", json.dumps(after) if after else ""]
        return f"start: {' '.join(parts)}\ncall: %json {json.dumps({'anyOf': choices, 'x-guidance': AS_TEMPLATES})}\n"


AS_TEMPLATES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The white space of Jinja's `tojson`, with which templates write calls."""


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    keys = list(properties)
    return {"type": "object", "properties": dict(properties), "required": keys, "additionalProperties": False}


def _parameters(tools: Tools) -> dict[str, dict[str, Any]]:
    """Each tool's name with the schema of its arguments."""
    functions = [tool["function"] for tool in tools]
    return {each["name"]: each.get("parameters") or {"type": "object"} for each in functions}


def _blocks(text: str, begin: str, end: str) -> list[str]:
    """What is between each `begin` and its `end`. ValueError if anything but white space is outside of them."""
    found = re.findall(rf"{re.escape(begin)}(.*?){re.escape(end)}", text, re.DOTALL)
    if not found or re.sub(rf"{re.escape(begin)}.*?{re.escape(end)}", "", text, flags=re.DOTALL).strip():
        raise ValueError("there is text between the calls")
    return found


def _json_call(value: Any) -> ToolCall:
    arguments = value["arguments"] if "arguments" in value else value["parameters"]
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(value["name"], str) or not isinstance(arguments, dict):
        raise ValueError("it is not a call")
    return ToolCall(value["name"], arguments)


def _tagged_json(text: str, tools: Tools) -> list[ToolCall]:
    return [_json_call(json.loads(block)) for block in _blocks(text, "<tool_call>", "</tool_call>")]


def _tagged_parameters(text: str, tools: Tools) -> list[ToolCall]:
    calls = []
    for block in _blocks(text, "<tool_call>", "</tool_call>"):
        name, body = re.fullmatch(r"\s*<function=([^>\n]+)>(.*)</function>\s*", block, re.DOTALL).groups()  # type: ignore[union-attr]
        given = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", body, re.DOTALL)
        calls.append(ToolCall(name, _typed(name, given, tools)))
    return calls


def _tagged_pairs(text: str, tools: Tools) -> list[ToolCall]:
    calls = []
    for block in _blocks(text, "<tool_call>", "</tool_call>"):
        name, _, body = block.strip().partition("\n")
        given = re.findall(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", body, re.DOTALL)
        if re.sub(r"<arg_key>.*?</arg_value>", "", body, flags=re.DOTALL).strip() or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError("it is not a call")
        calls.append(ToolCall(name, _typed(name, given, tools)))
    return calls


def _typed(name: str, given: Sequence[tuple[str, str]], tools: Tools) -> dict[str, Any]:
    """Arguments that are written without quotes, with the types of the tool's schema."""
    properties = _parameters(tools).get(name, {}).get("properties") or {}
    return {key: _value(text, properties.get(key) or {}) for key, text in given}


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    if schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _bare_json(text: str, tools: Tools) -> list[ToolCall]:
    pieces = text.removeprefix("<|python_tag|>").strip()
    calls, decoder = [], json.JSONDecoder()
    while pieces:
        value, end = decoder.raw_decode(pieces)
        calls.append(_json_call(value))
        pieces = pieces[end:].lstrip("; \n")
    return calls


def _bracketed(text: str, tools: Tools) -> list[ToolCall]:
    """Mistral's: a list of calls, or, in newer templates, a name and its arguments each."""
    calls, decoder = [], json.JSONDecoder()
    for block in text.split("[TOOL_CALLS]")[1:]:
        block = block.strip()
        if block.startswith("["):
            calls += [_json_call(value) for value in json.loads(block)]
            continue
        name, arguments = re.fullmatch(r"([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(\{.*)", block, re.DOTALL).groups()  # type: ignore[union-attr]
        value, end = decoder.raw_decode(arguments)
        if arguments[end:].strip():
            raise ValueError("there is text after the call")
        calls.append(ToolCall(name, value))
    return calls


def _python(text: str, tools: Tools) -> list[ToolCall]:
    """LFM2's: a list of Python calls with keyword arguments."""
    calls = []
    for block in _blocks(text, "<|tool_call_start|>", "<|tool_call_end|>"):
        listed = ast.parse(block.strip(), mode="eval").body
        for call in listed.elts if isinstance(listed, ast.List) else [listed]:
            if not isinstance(call, ast.Call) or call.args or any(each.arg is None for each in call.keywords):
                raise ValueError("it is not a call with keyword arguments")
            arguments = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
            calls.append(ToolCall(ast.unparse(call.func), arguments))
    return calls


_QUOTE = '<|"|>'
"""Gemma 4's quotation mark."""


def _gemma(text: str, tools: Tools) -> list[ToolCall]:
    """Gemma 4's: objects with bare keys, and a special token as quotation mark."""
    calls = []
    for block in _blocks(text.removesuffix("<|tool_response>"), "<|tool_call>", "<tool_call|>"):
        name, body = re.fullmatch(r"call:([\w.-]+)(\{.*\})", block.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
        texts = re.split(re.escape(_QUOTE), body)
        texts[::2] = [re.sub(r"([{,]\s*)([\w.-]+)(\s*:)", r'\1"\2"\3', outside) for outside in texts[::2]]
        texts[1::2] = [json.dumps(inside) for inside in texts[1::2]]
        calls.append(ToolCall(name, json.loads("".join(texts))))
    return calls


FORMS = (
    ToolCallForm("<tool_call>", _tagged_json, around=("<tool_call>\n", "arguments", "\n</tool_call>")),
    ToolCallForm("<tool_call>", _tagged_parameters),
    ToolCallForm("<tool_call>", _tagged_pairs),
    ToolCallForm("{", _bare_json, ("<|python_tag|>",), at_the_beginning=True, around=("", "parameters", "")),
    ToolCallForm("[TOOL_CALLS]", _bracketed, ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")),
    ToolCallForm("<|tool_call_start|>", _python, ("<|tool_call_start|>", "<|tool_call_end|>")),
    ToolCallForm("<|tool_call>", _gemma, ("<|tool_call>", "<tool_call|>", _QUOTE)),
)
"""Hermes, Qwen 2.5 and 3 · Qwen 3.5, Nemotron 3 · GLM 4.5 · Llama 3.1 · Mistral · LFM2 · Gemma 4."""

_PROBE = ToolCall("get_weather", {"city": "Ulm", "days": 3})
_PROBE_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": _PROBE.name,
            "description": "The weather of the next days.",
            "parameters": _object({"city": {"type": "string"}, "days": {"type": "integer"}}),
        },
    }
]
_PROBE_CHAT: list[Message] = [
    {"role": "user", "content": "How is the weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "call00001", "function": {"name": _PROBE.name, "arguments": _PROBE.arguments}}
        ],
    },
]


def form_of(template: ChatTemplate, special: Sequence[str]) -> ToolCallForm | None:
    """The form in which the template writes tool calls; None if it writes none, or in a form that is not known.

    Args:
        template: of the model.
        special: the tokenizer's special tokens; those after the call end the turn.
    """
    try:
        text = template.text(_PROBE_CHAT, _PROBE_TOOLS)
    except UnusableError:
        return None
    for form in FORMS:
        at = text.rfind(form.start if not form.at_the_beginning else '{"name"')
        if at < 0:
            continue
        rest = text[at:]
        ends = [rest.find(token) for token in special if token not in form.markers and token in rest]
        if _read(form, rest[: min(ends, default=len(rest))], _PROBE_TOOLS) == [_PROBE]:
            return form
    return None


def _read(form: ToolCallForm, text: str, tools: Tools) -> list[ToolCall]:
    """The calls in a text that begins with one; none if it cannot be read as calls from beginning to end."""
    try:
        return form.read(text, tools)
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError):
        return []


class ToolText:
    """An answer's text as it grows: content that is certain, then the tool calls.

    Args:
        form: of the model's template.
        tools: that the chat may call.
    """

    def __init__(self, form: ToolCallForm, tools: Tools) -> None:
        self._form, self._tools = form, tools
        self._held = ""
        self._began = False  # something has been returned as content
        self._calling = False

    def add(self, piece: str) -> str:
        """The next piece of the answer. Returns the content that is certain, which may be empty."""
        self._held += piece
        if self._calling:
            return ""
        content = self._held[: self._content_end()]
        self._held = self._held[len(content) :]
        self._began = self._began or bool(content.strip())
        return content

    def _content_end(self) -> int:
        """Where the held text's certain content ends: where a call begins or may begin."""
        if self._form.at_the_beginning:
            text = self._held.lstrip()
            starts = (self._form.start, *self._form.markers)
            self._calling = not self._began and text.startswith(starts)
            may_begin = not self._began and (not text or any(start.startswith(text) for start in starts))
            return 0 if self._calling or may_begin else len(self._held)
        at = self._held.find(self._form.start)
        self._calling = at >= 0
        return at if self._calling else len(self._held) - overlap(self._held, self._form.start)

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The rest, once there is no further piece: content, and calls. What is not a complete call is content."""
        calls = _read(self._form, self._held.strip(), self._tools) if self._calling else []
        return ("" if calls else self._held), calls
