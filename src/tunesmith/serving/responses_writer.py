"""A response of `/v1/responses` while it is written, and the events that tell of it."""

import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.serving.bodies import FlatNamedTool, ResponseBody
from tunesmith.serving.chat import Plan, Reply
from tunesmith.serving.choices import Delta

Kind = Literal["reasoning", "message"]


@dataclass(frozen=True, slots=True)
class _Form:
    """How the protocol announces an item of text.

    Attributes:
        prefix: of the item's id.
        part: the type of its part.
        more: fields of the part and of the events that tell of its text.
        fields: of the item.
    """

    prefix: str
    part: str
    more: Mapping[str, Any]
    fields: Mapping[str, Any]


_FORMS: dict[Kind, _Form] = {
    "reasoning": _Form("rs", "reasoning_text", {}, {"summary": []}),
    "message": _Form("msg", "output_text", {"logprobs": []}, {"role": "assistant"}),
}


class Writer:
    """The response. Each event has the response or item as it is at that time, so all are made from the present state.

    Args:
        body: of the request.
        plan: the chat that it asks for.
    """

    def __init__(self, body: ResponseBody, plan: Plan) -> None:
        self._body, self._plan = body, plan
        self.identity, self._item = f"resp_{uuid.uuid4().hex}", ""
        self._created, self._status = int(time.time()), "in_progress"
        self._output: list[dict[str, Any]] = []
        self._kind: Kind | None = None  # of the last item, as long as it is written
        self._text = ""  # of it
        self._usage: dict[str, Any] | None = None

    @property
    def response(self) -> dict[str, Any]:
        """The response as it is now."""
        body, sampling = self._body, self._plan.asked[0].sampling
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
            "usage": self._usage,
            "metadata": body.metadata or {},
        }

    def open(self) -> Iterator[dict[str, Any]]:
        """The first events."""
        yield {"type": "response.created", "response": self.response}
        yield {"type": "response.in_progress", "response": self.response}

    def delta(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The events of new text.

        Args:
            delta: what is new.
        """
        if delta.reasoning:
            yield from self._write("reasoning", delta.reasoning)
        if delta.content:
            yield from self._write("message", delta.content)

    def _write(self, kind: Kind, text: str) -> Iterator[dict[str, Any]]:
        if self._kind != kind:
            yield from self._end_item()
            yield from self._begin_item(kind)
        self._text += text
        yield {**self._event("delta"), "delta": text}

    def _begin_item(self, kind: Kind) -> Iterator[dict[str, Any]]:
        self._kind, self._text, self._item = kind, "", f"{_FORMS[kind].prefix}_{uuid.uuid4().hex}"
        self._output.append(self._text_item("in_progress"))
        yield {"type": "response.output_item.added", **self._index, "item": self._output[-1]}
        yield {"type": "response.content_part.added", **self._place, "part": self._part}

    def _end_item(self) -> Iterator[dict[str, Any]]:
        if self._kind is None:
            return
        self._output[-1] = self._text_item("completed", self._part)
        yield {**self._event("done"), "text": self._text}
        yield {"type": "response.content_part.done", **self._place, "part": self._part}
        yield {"type": "response.output_item.done", **self._index, "item": self._output[-1]}
        self._kind = None

    def close(self, reply: Reply) -> Iterator[dict[str, Any]]:
        """The last events.

        Args:
            reply: the whole answer.
        """
        (choice,), usage = reply.choices, reply.usage
        if not choice.calls and self._kind is None:  # an answer without a token is still a message
            yield from self._begin_item("message")
        yield from self._end_item()
        for call in choice.calls:
            yield from self._call(call["id"], call["function"])
        self._status = "incomplete" if choice.finish_reason == "length" else "completed"
        self._usage = {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.answer,
            "output_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
            "total_tokens": usage.total,
        }
        yield {"type": f"response.{self._status}", "response": self.response}

    def _call(self, identity: str, function: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        item = {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": identity, "name": function["name"]}
        text, done = function["arguments"], {**item, "arguments": function["arguments"], "status": "completed"}
        self._output.append({**item, "arguments": "", "status": "in_progress"})
        of_item = {**self._index, "item_id": item["id"]}
        yield {"type": "response.output_item.added", **self._index, "item": self._output[-1]}
        yield {"type": "response.function_call_arguments.delta", **of_item, "delta": text}
        yield {
            "type": "response.function_call_arguments.done",
            **of_item,
            "name": function["name"],
            "arguments": text,
        }
        self._output[-1] = done
        yield {"type": "response.output_item.done", **self._index, "item": done}

    @property
    def _form(self) -> _Form:
        assert self._kind is not None
        return _FORMS[self._kind]

    @property
    def _index(self) -> dict[str, Any]:
        return {"output_index": len(self._output) - 1}

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, **self._index, "content_index": 0}

    @property
    def _part(self) -> dict[str, Any]:
        annotations: dict[str, Any] = {"annotations": []} if self._kind == "message" else {}
        return {"type": self._form.part, "text": self._text, **annotations, **self._form.more}

    def _event(self, what: str) -> dict[str, Any]:
        return {"type": f"response.{self._form.part}.{what}", **self._place, **self._form.more}

    def _text_item(self, status: str, *content: Mapping[str, Any]) -> dict[str, Any]:
        item = {"type": self._kind, "id": self._item, "status": status}
        return {**item, **self._form.fields, "content": list(content)}


def _plain(choice: str | FlatNamedTool) -> Any:
    return choice if isinstance(choice, str) else choice.model_dump()
