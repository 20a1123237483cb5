"""`/v1/responses`: OpenAI's newer form of a chat, with text and tools."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tunesmith.inference.writing import Generation
from tunesmith.serving.bodies import (
    ChatBody,
    FlatNamedTool,
    Function,
    FunctionName,
    JsonSchema,
    NamedTool,
    ResponseBody,
    ResponseFormat,
    TextFormat,
    Tool,
)
from tunesmith.serving.chat import Chat, Plan
from tunesmith.serving.choices import Choice, Delta
from tunesmith.serving.errors import ApiError
from tunesmith.serving.events import event, stream
from tunesmith.serving.service import Service, Usage, unless_gone


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
            return await stream(request, self._events(body, plan))
        return await unless_gone(request, self._at_once(body, plan))

    async def _at_once(self, body: ResponseBody, plan: Plan) -> Response:
        writer = _Writer(body, plan, self._chat.choices(plan)[0])
        async with self._service.pieces(plan.target, plan.asked) as pieces:
            async for _, piece in pieces:
                for _ in writer.delta(writer.choice.take(piece)):
                    pass
                if isinstance(piece.end, Generation):
                    writer.usage.add(piece.end, with_prompt=True)
        for _ in writer.close():
            pass
        self._remember(writer, plan)
        return JSONResponse(writer.response)

    async def _events(self, body: ResponseBody, plan: Plan) -> AsyncIterator[bytes]:
        writer, number = _Writer(body, plan, self._chat.choices(plan)[0]), 0
        async with self._service.pieces(plan.target, plan.asked) as pieces:
            begun = False
            async for _, piece in pieces:
                found = [] if begun else list(writer.open())
                begun = True
                found += writer.delta(writer.choice.take(piece))
                if isinstance(piece.end, Generation):
                    writer.usage.add(piece.end, with_prompt=True)
                    found += writer.close()
                for each in found:
                    yield event({**each, "sequence_number": number}, each["type"])
                    number += 1
        self._remember(writer, plan)

    def _remember(self, writer: "_Writer", plan: Plan) -> None:
        self._service.remember(
            writer.identity, plan.target, messages=plan.messages, tools=plan.tools, answers=[writer.choice.message]
        )


class _Writer:
    """The response while it is written, and the events that tell of it.

    Each event has the response or item as it is at that time, so all are made from the present state.
    """

    def __init__(self, body: ResponseBody, plan: Plan, choice: Choice) -> None:
        self._body, self._plan, self.choice = body, plan, choice
        self.usage = Usage()
        self.identity, self._item = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self._created, self._status = int(time.time()), "in_progress"
        self._output: list[dict[str, Any]] = []

    @property
    def response(self) -> dict[str, Any]:
        """The response as it is now."""
        body, done = self._body, self._status != "in_progress"
        sampling = self._plan.asked[0].sampling
        usage = {
            "input_tokens": self.usage.prompt,
            "input_tokens_details": {"cached_tokens": self.usage.cached},
            "output_tokens": self.usage.answer,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.usage.total,
        }
        return {
            "id": self.identity,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._plan.target.model,
            "output": list(self._output),
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": {"type": "text"}}
            if body.text is None
            else body.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": "auto" if body.tool_choice is None else _plain(body.tool_choice),
            "tools": [{"strict": None, **tool.model_dump()} for tool in body.tools or []],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": usage if done else None,
            "metadata": body.metadata or {},
        }

    def open(self) -> Iterator[dict[str, Any]]:
        """The first events."""
        yield {"type": "response.created", "response": self.response}
        yield {"type": "response.in_progress", "response": self.response}

    def delta(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The events of new text."""
        if not delta.content:
            return
        if not self._output:
            yield from self._begin_message()
        yield {"type": "response.output_text.delta", **self._place, "delta": delta.content, "logprobs": []}

    def _begin_message(self) -> Iterator[dict[str, Any]]:
        self._output.append(self._message("in_progress", []))
        yield {"type": "response.output_item.added", "output_index": 0, "item": self._output[0]}
        yield {"type": "response.content_part.added", **self._place, "part": _part("")}

    def close(self) -> Iterator[dict[str, Any]]:
        """The last events."""
        if not self.choice.calls and not self._output:  # an answer without a token is still a message
            yield from self._begin_message()
        if self._output:
            text = self.choice.content
            self._output[0] = self._message("completed", [_part(text)])
            yield {"type": "response.output_text.done", **self._place, "text": text, "logprobs": []}
            yield {"type": "response.content_part.done", **self._place, "part": _part(text)}
            yield {"type": "response.output_item.done", "output_index": 0, "item": self._output[0]}
        for call in self.choice.calls:
            yield from self._call(call["id"], call["function"])
        self._status = "incomplete" if self.choice.finish_reason == "length" else "completed"
        yield {"type": f"response.{self._status}", "response": self.response}

    def _call(self, identity: str, function: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        item = {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": identity, "name": function["name"]}
        place = {"output_index": len(self._output), "item_id": item["id"]}
        index, text = {"output_index": len(self._output)}, function["arguments"]
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield {"type": "response.output_item.added", **index, "item": begun}
        yield {"type": "response.function_call_arguments.delta", **place, "delta": text}
        yield {"type": "response.function_call_arguments.done", **place, "name": function["name"], "arguments": text}
        self._output.append({**item, "arguments": text, "status": "completed"})
        yield {"type": "response.output_item.done", **index, "item": self._output[-1]}

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _message(self, status: str, content: Sequence[Any]) -> dict[str, Any]:
        return {"type": "message", "id": self._item, "status": status, "role": "assistant", "content": list(content)}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _plain(choice: str | FlatNamedTool) -> Any:
    return choice if isinstance(choice, str) else choice.model_dump()


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
                content = item.get("content")
                messages.append({"role": item.get("role"), "content": _texts(content, number)})
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


def _texts(content: Any, number: int) -> Any:
    """The content of a message; parts of text are joined."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") not in ("input_text", "output_text", "text"):
            message = f"input.{number} has a part that is not text, which is not supported."
            raise ApiError(400, message, f"input.{number}", "unsupported_field")
        texts.append({"type": "text", "text": part.get("text")})
    return texts
