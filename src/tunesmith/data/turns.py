"""The turns of a chat, from the variants in data files to the format that chat templates take.

Roles and keys get their usual names; the content of a turn is not changed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.example import Message
from tunesmith.data.media import UNUSABLE, media_key, media_part
from tunesmith.data.reasoning import KEYS as REASONING
from tunesmith.data.reasoning import split_reasoning

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""Role in files → role in templates. The content of a `function_call` is the call itself, as JSON."""


class MalformedRowError(ValueError):
    """Why a row cannot be parsed; the data pipeline turns it into a `Malformed`."""


def turns_of(value: Any, column: str) -> list[Message]:
    """The turns in a column, as a list or as that list in JSON (as in CSV files).

    A turn is `{role, content}` or ShareGPT's `{from, value}`, as its keys show. Keys without a value are dropped
    (Parquet gives every turn all keys), text in parts is joined, and `tool_calls` become
    `{type: function, function: {name, arguments: object}}`, which templates write as JSON themselves. An answer's
    reasoning, from a key or from parts, becomes its `reasoning_content`; `<think>` in its content stays there, because
    only the chat template decides whether it is reasoning.

    Raises:
        MalformedRowError: a turn cannot be parsed; the message names it.
    """
    turns = parsed(value, column)
    if not isinstance(turns, list):
        raise MalformedRowError(f"{column} is {in_words(turns)}, not a list of turns")
    if not turns:
        raise MalformedRowError(f"{column} is an empty list")
    return [_plain_turn(turn) or _turn(turn, f"turn {number} of {column}") for number, turn in enumerate(turns, 1)]


def chat(messages: list[Message]) -> tuple[Message, ...]:
    """The conversation, if every assistant turn has content.

    Raises:
        MalformedRowError: there is no assistant turn, or one has no text and no tool call.
    """
    answers = [turn for turn in messages if turn["role"] == "assistant"]
    if not answers:
        raise MalformedRowError("no assistant turn, so there is no answer to learn from")
    for number, turn in enumerate(messages, 1):
        has_content = turn["content"].strip() or turn.get("tool_calls") or turn.get("reasoning_content")
        if turn["role"] == "assistant" and not has_content:
            raise MalformedRowError(
                "the answer is empty" if len(answers) == 1 else f"turn {number} (assistant) is empty"
            )
    return tuple(messages)


def tools_of(value: Any) -> tuple[dict[str, Any], ...] | None:
    """The tools that a chat may call, as JSON schemas `{type: function, function: {name, description, parameters}}`.

    Read from a list or its JSON; a bare `{name, parameters}` is wrapped. None if there are no tools.
    """
    tools = parsed(value, "tools") if value else None
    if not tools:
        return None
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise MalformedRowError(f"tools is {in_words(tools)}, not a list of tool descriptions")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def parsed(value: Any, what: str) -> Any:
    """The value; if it is a text, the text parsed as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise MalformedRowError(f"{what} is a text that is not valid JSON: {_short(value)}") from None


def in_words(value: Any) -> str:
    """The type of a value, for messages: `a number (42)`."""
    match value:
        case None:
            return "missing"
        case bool() | int() | float():
            return f"a {'truth value' if isinstance(value, bool) else 'number'} ({value})"
        case str():
            return f"a text ({_short(value)})"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
        case bytes():
            return "binary"
    return f"a {type(value).__name__}"


_PLAIN = {"role", "content"}
_PLAIN_ROLES = {name: role for name, role in ROLES.items() if name != "function_call"}


def _plain_turn(turn: Any) -> Message | None:
    """A turn of a role and a text, as most are; None if it has to be looked at closely, as `_turn` does."""
    if type(turn) is not dict or turn.keys() != _PLAIN:
        return None
    role, content = turn["role"], turn["content"]
    if type(role) is not str or type(content) is not str or role not in _PLAIN_ROLES:
        return None
    return {"role": _PLAIN_ROLES[role], "content": content}


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise MalformedRowError(f"{where} is {in_words(turn)}, not an object with role and content")
    rest = {str(key): value for key, value in turn.items() if value is not None}
    has_loss = _has_loss(rest, where)
    name = rest.pop("role", None) if "role" in rest else rest.pop("from", None)
    if name is None:
        raise MalformedRowError(f"{where} has no role; it has {', '.join(turn) or 'nothing'}")
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise MalformedRowError(f"{where} has the unknown role {name!r}; known: {', '.join(ROLES)}")
    if role == "assistant" and not has_loss:
        rest["learn"] = False
    if (media := media_key(rest)) is not None:
        raise MalformedRowError(f"{where} has {media[1]} in {media[0]}, {UNUSABLE}. Remove the key, or such rows")
    content = rest.pop("content", None) if "content" in rest else rest.pop("value", None)
    if name.lower() == "function_call":
        _take_reasoning(rest, _Parts.of("", where), role, where)
        return {"role": role, "content": "", "tool_calls": _calls(parsed(content, where), where), **rest}
    parts = _Parts.of("" if content is None else content, where)
    _take_calls(rest, parts, where)
    _take_reasoning(rest, parts, role, where)
    if content is None and not ("tool_calls" in rest or "reasoning_content" in rest):
        raise MalformedRowError(f"{where} has no content; it has {', '.join(turn)}")
    return {"role": role, "content": parts.text, **rest}


def _has_loss(turn: dict[str, Any], where: str) -> bool:
    """Whether the turn has loss. Removes the keys that decide it: OpenAI's `weight`, LLaMA-Factory's `loss_weight`,
    others' `train`."""
    has_loss = True
    for name in ("weight", "loss_weight", "train", "training", "learn"):
        value = turn.pop(name, 1)
        if value not in (0, 1):
            raise MalformedRowError(f"the {name} of {where} is {in_words(value)}, not 0 or 1")
        has_loss = has_loss and bool(value)
    return has_loss


@dataclass
class _Parts:
    """The content of a turn.

    Attributes:
        text: the concatenated texts.
        reasoning: the concatenated reasoning.
        calls: tool calls, as they are in the row.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, content: Any, where: str) -> "_Parts":
        """From a text, or from parts: OpenAI's `{type: text, text: ...}`, LLaMA-Factory's `{type: text, value: ...}`
        (also of type `reasoning` and `tool_call`), Anthropic's `{type: thinking, thinking: ...}`."""
        if isinstance(content, str):
            return cls(content)
        if not isinstance(content, list):
            raise MalformedRowError(f"the content of {where} is {in_words(content)}, not a text")
        parts = cls()
        for part in content:
            parts._add({"text": part} if isinstance(part, str) else part, where)
        return parts

    def _add(self, part: Any, where: str) -> None:
        if not isinstance(part, Mapping):
            raise MalformedRowError(f"the content of {where} has a part that is not text ({in_words(part)})")
        if (media := media_part(part)) is not None:
            raise MalformedRowError(
                f"the content of {where} has {media[1]} (a part of type {media[0]}), {UNUSABLE}. Remove the part, or "
                "such rows"
            )
        kind = str(part.get("type") or "text")
        if kind == "tool_call":
            self.calls.append(parsed(part.get("value"), where))
            return
        names = {"text": ("text", "value")}.get(kind, ("value", "text", *REASONING) if kind in _REASONING_PARTS else ())
        text = next((part[name] for name in names if part.get(name) is not None), None)
        if not isinstance(text, str):
            raise MalformedRowError(f"the content of {where} has a part that is not text ({part.get('type')})")
        if kind == "text":
            self.text += text
        elif self.text.strip() or self.calls:
            raise MalformedRowError(f"the content of {where} has reasoning after its text. Put the reasoning first")
        else:
            self.reasoning += text


_REASONING_PARTS = ("reasoning", "thinking")


def _take_calls(turn: dict[str, Any], parts: _Parts, where: str) -> None:
    """Set the turn's `tool_calls`, from that key or from its parts."""
    calls = [*_calls(parsed(turn.pop("tool_calls", []), where), where), *_calls(parts.calls, where)]
    if calls:
        turn["tool_calls"] = calls


def _take_reasoning(turn: dict[str, Any], parts: _Parts, role: str, where: str) -> None:
    """Set the turn's `reasoning_content`, from its keys or parts. Reasoning that the row has twice is there once."""
    found = {"parts": parts.reasoning, **{key: turn.pop(key) for key in REASONING if key in turn}}
    found = {key: value for key, value in found.items() if value}
    for key, value in found.items():
        if not isinstance(value, str):
            raise MalformedRowError(f"the {key} of {where} is {in_words(value)}, not a text")
    if not found:
        return
    if role != "assistant":
        raise MalformedRowError(f"{where} ({role}) has {', '.join(found)}, but only an answer has reasoning")
    in_content, parts.text = split_reasoning(parts.text)
    if in_content:
        found["<think> in its content"] = in_content
    if len({str(value).strip() for value in found.values()}) > 1:
        raise MalformedRowError(f"{where} has reasoning in {' and in '.join(found)}, which differ. Keep one of them")
    turn["reasoning_content"] = next(iter(found.values()))


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list):
        raise MalformedRowError(f"the tool call in {where} is {in_words(calls)}, not an object with name and arguments")
    normal: list[dict[str, Any]] = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise MalformedRowError(f"the tool call in {where} is not an object with name and arguments")
        arguments = parsed(function.get("arguments") or {}, f"the tool call's arguments in {where}")
        if not isinstance(arguments, Mapping):
            raise MalformedRowError(f"the tool call's arguments in {where} are {in_words(arguments)}, not an object")
        identity = {"id": call["id"]} if "function" in call and call.get("id") is not None else {}
        described = {"name": function["name"], "arguments": dict(arguments)}
        normal.append({"type": "function", **identity, "function": described})
    return normal


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
