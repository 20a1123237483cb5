"""`/v1/responses`: OpenAI's newer form of a chat, with text, reasoning and tools."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tunesmith.serving.bodies import (
    ChatBody,
    Function,
    FunctionName,
    JsonSchema,
    NamedTool,
    ResponseBody,
    ResponseFormat,
    TextFormat,
    Tool,
)
from tunesmith.serving.chat import Chat, Plan, Reply
from tunesmith.serving.errors import ApiError
from tunesmith.serving.events import event, stream
from tunesmith.serving.responses_writer import Writer
from tunesmith.serving.service import Service, unless_gone

TEXT_PARTS = ("input_text", "output_text", "reasoning_text", "text")


class Responses:
    """Answers a chat that is sent as items.

    Args:
        service: of the model.
        chat: that answers it.
    """

    def __init__(self, service: Service, chat: Chat) -> None:
        self._service, self._chat = service, chat

    async def __call__(self, request: Request) -> Response:
        """The endpoint."""
        service = self._service
        body, target = await service.asked(request, ResponseBody)
        plan = await service.prepare(lambda: self._chat.plan(_as_chat(body), target))
        if body.stream:
            return await stream(request, self._numbered(body, plan))
        return await unless_gone(request, self._at_once(body, plan))

    async def _at_once(self, body: ResponseBody, plan: Plan) -> Response:
        events = [each async for each in self._events(body, plan)]
        return JSONResponse(events[-1]["response"])

    async def _numbered(self, body: ResponseBody, plan: Plan) -> AsyncGenerator[bytes]:
        number = 0
        async with aclosing(self._events(body, plan)) as events:
            async for each in events:
                yield event({**each, "sequence_number": number}, each["type"])
                number += 1

    async def _events(self, body: ResponseBody, plan: Plan) -> AsyncGenerator[dict[str, Any]]:
        """The events that tell of the response; the last one has all of it."""
        writer = Writer(body, plan)
        reply, begun = Reply(writer.identity, plan, self._chat), False
        async with aclosing(reply.deltas()) as deltas:
            async for _, delta in deltas:
                if not begun:  # an answer that cannot be begun has a status of its own, and no events
                    for each in writer.open():
                        yield each
                begun = True
                for each in writer.delta(delta):
                    yield each
        for each in writer.close(reply):
            yield each


def _as_chat(body: ResponseBody) -> ChatBody:
    """The same request for `/v1/chat/completions`."""
    system = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else _messages(body.input)
    choice = body.tool_choice
    return ChatBody(
        model=body.model,
        messages=[*system, *items],
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        response_format=_format(None if body.text is None else body.text.format),
        tools=[Tool(type="function", function=_function(tool)) for tool in body.tools or []],
        tool_choice=choice
        if choice is None or isinstance(choice, str)
        else NamedTool(type="function", function=FunctionName(name=choice.name)),
        parallel_tool_calls=body.parallel_tool_calls,
    )


def _function(tool: Function) -> Function:
    return Function(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)


def _format(wanted: TextFormat | None) -> ResponseFormat | None:
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        return ResponseFormat(type=wanted.type)
    return ResponseFormat(
        type="json_schema", json_schema=JsonSchema(name=wanted.name or "answer", schema_=wanted.schema_)
    )


def _messages(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items as messages; calls that follow each other are one message of the assistant."""
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        match item.get("type", "message"):
            case "message":
                message = {"role": item.get("role"), "content": _texts(item.get("content"), number)}
                if messages and message["role"] == "assistant" and _is_reasoning(messages[-1]):
                    message = {**messages.pop(), **message}
                messages.append(message)
            case "reasoning":
                reasoning = "".join(str(part["text"]) for part in _parts(item.get("content") or [], number))
                if reasoning:  # another server's may be encrypted
                    messages.append({"role": "assistant", "content": "", "reasoning_content": reasoning})
            case "function_call":
                call = {"id": item.get("call_id"), "type": "function"}
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                messages[-1].setdefault("tool_calls", []).append({**call, "function": function})
            case "function_call_output":
                output = item.get("output")
                text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
                messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
            case other:
                raise ApiError(
                    400,
                    f"input.{number} is of type {other}, which is not supported.",
                    f"input.{number}",
                    "unsupported_field",
                )
    return messages


def _is_reasoning(message: Mapping[str, Any]) -> bool:
    """Whether a message has nothing but the reasoning of the one that follows."""
    return set(message) == {"role", "content", "reasoning_content"} and not message["content"]


def _texts(content: Any, number: int) -> Any:
    """The content of a message; parts of text are as in a chat."""
    return _parts(content, number) if isinstance(content, list) else content


def _parts(content: Any, number: int) -> list[dict[str, Any]]:
    texts = []
    for part in content if isinstance(content, list) else [None]:
        if not isinstance(part, Mapping) or part.get("type") not in TEXT_PARTS:
            message = f"input.{number} has a part that is not text, which is not supported."
            raise ApiError(400, message, f"input.{number}", "unsupported_field")
        texts.append({"type": "text", "text": part.get("text")})
    return texts
