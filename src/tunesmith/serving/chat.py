"""`/v1/chat/completions`."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tunesmith.inference.reasoning_text import ReasoningForm, ReasoningText
from tunesmith.inference.tool_calls import ToolCallForm, Tools, ToolText
from tunesmith.serving.answering import Answering, Asked, Usage
from tunesmith.serving.bodies import ChatBody, NamedTool
from tunesmith.serving.choices import Choice, Delta, TokenTexts
from tunesmith.serving.errors import ApiError
from tunesmith.serving.events import DONE, event, stream
from tunesmith.serving.prompts import ANSWER, Prompts, sampling_of, schema_text
from tunesmith.serving.service import Service, Target, about, unless_gone


@dataclass(frozen=True, slots=True)
class Plan:
    """A chat to answer.

    Attributes:
        target: which model.
        messages: as the client sent them.
        tools: that the answer may call.
        form: in which it calls them; None: it calls none.
        reasoning: in which form it reasons; None: in none that the chat template knows.
        asked: the answers.
        with_logprobs: whether tokens and log-probabilities are reported.
    """

    target: Target
    messages: Sequence[dict[str, Any]]
    tools: Tools
    form: ToolCallForm | None
    reasoning: ReasoningForm | None
    asked: Sequence[Asked]
    with_logprobs: bool


class Reply:
    """The answers to a chat while they are written.

    Args:
        identity: of the response.
        plan: the chat.
        chat: that answers it.
    """

    def __init__(self, identity: str, plan: Plan, chat: "Chat") -> None:
        self._identity, self.plan, self._chat = identity, plan, chat
        self.choices = [chat.choice(plan) for _ in plan.asked]
        self.usage = Usage()

    @property
    def reasoning_tokens(self) -> int:
        """How many of the answers' tokens are reasoning."""
        return sum(choice.reasoning_tokens for choice in self.choices)

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """Write the answers; what is new, each with its answer's number.

        Raises:
            ApiError: as `Answering.answers`.
        """
        plan, chat = self.plan, self._chat
        async with aclosing(chat.answering.answers(plan.target, plan.asked, self.choices, self.usage)) as deltas:
            async for each in deltas:
                yield each
        answers = [choice.message for choice in self.choices]
        chat.service.remember(self._identity, plan.target, messages=plan.messages, tools=plan.tools, answers=answers)

    async def whole(self) -> None:
        """Write the answers to their end.

        Raises:
            ApiError: as `Answering.answers`.
        """
        async for _ in self.deltas():
            pass

    def usage_of(self) -> dict[str, Any]:
        """Numbers of tokens."""
        return {**usage_of(self.usage), "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens}}


class Chat:
    """Answers chats.

    Args:
        service: of the model.
        answering: writes the answers.
        prompts: renders for the model.
    """

    def __init__(self, service: Service, answering: Answering, prompts: Prompts) -> None:
        self.service, self.answering, self._prompts = service, answering, prompts
        self._texts = TokenTexts(service.model.tokenizer)

    async def __call__(self, request: Request) -> Response:
        """The endpoint."""
        body, target = await self.service.asked(request, ChatBody)
        plan = await self.service.prepare(partial(self.plan, body, target))
        if not body.stream:
            return await unless_gone(request, self._at_once(plan))
        return await stream(request, self._events(plan, body.tells_usage))

    def plan(self, body: ChatBody, target: Target) -> Plan:
        """What the body asks for.

        Raises:
            ApiError: a field cannot be followed.
        """
        _refuse_contradictions(body)
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
        form, reasoning = self._form(tools, body), self._prompts.reasoning_form
        ids = self._prompts.ids(body.messages, tools, body.max_completion_tokens or body.max_tokens or ANSWER)
        param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        tokens = self.answering.answer_tokens([ids], body.max_completion_tokens or body.max_tokens, param)
        sampling = sampling_of(
            body,
            self.service.default,
            max_new_tokens=tokens,
            schema=_schema(body),
            top_logprobs=body.top_logprobs or 0,
        )
        if form is not None and body.tool_choice not in (None, "auto", "none"):
            sampling = replace(sampling, grammar=_grammar(form, tools, body.tool_choice))
        if reasoning is not None and not reasoning.start and sampling.is_bound:
            reasoning = None  # the grammar is that of the whole answer, which so cannot begin with reasoning
        keep = tuple(marker for each in (form, reasoning) if each is not None for marker in each.markers)
        asked = [Asked(ids, sampling, number, keep) for number in range(body.n or 1)]
        return Plan(target, body.messages, tools, form, reasoning, asked, bool(body.logprobs))

    def _form(self, tools: Tools, body: ChatBody) -> ToolCallForm | None:
        if not tools:
            return None
        if self._prompts.tool_form is None:
            message = "The model's chat template writes no tool calls, or in a form that is not known. Leave tools out."
            raise ApiError(400, message, "tools", "unsupported_field")
        return None if body.tool_choice == "none" else self._prompts.tool_form

    def choice(self, plan: Plan) -> Choice:
        """One of the answers, before its first piece."""
        return Choice(
            None if plan.reasoning is None else ReasoningText(plan.reasoning),
            None if plan.form is None else ToolText(plan.form, plan.tools),
            self._texts,
            plan.with_logprobs,
        )

    async def _at_once(self, plan: Plan) -> Response:
        head = about(plan.target, "chatcmpl", "chat.completion")
        reply = Reply(head["id"], plan, self)
        await reply.whole()
        choices = [
            {
                "index": index,
                "message": choice.message,
                "logprobs": {"content": choice.logprobs, "refusal": None} if plan.with_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(reply.choices)
        ]
        return JSONResponse({**head, "choices": choices, "usage": reply.usage_of()})

    async def _events(self, plan: Plan, include_usage: bool) -> AsyncGenerator[bytes]:
        head = about(plan.target, "chatcmpl", "chat.completion.chunk")
        reply, begun = Reply(head["id"], plan, self), set[int]()
        if include_usage:
            head["usage"] = None
        async with aclosing(reply.deltas()) as deltas:
            async for number, delta in deltas:
                if number not in begun:
                    yield event({**head, "choices": [_chunk(number, {"role": "assistant", "content": ""})]})
                    begun.add(number)
                if delta.has_something:
                    yield event({**head, "choices": [_chunk(number, _delta(delta), delta, plan.with_logprobs)]})
                if reply.choices[number].finish_reason is not None:
                    yield event({**head, "choices": [_chunk(number, {}, finish=reply.choices[number].finish_reason)]})
        if include_usage:
            yield event({**head, "choices": [], "usage": reply.usage_of()})
        yield DONE


def usage_of(usage: Usage) -> dict[str, Any]:
    """Numbers of tokens, as chats and completions have them."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def _delta(delta: Delta) -> dict[str, Any]:
    found = {"reasoning_content": delta.reasoning, "content": delta.content, "tool_calls": list(delta.calls)}
    return {key: value for key, value in found.items() if value} or {"content": ""}


def _chunk(
    index: int,
    delta: dict[str, Any],
    found: Delta | None = None,
    with_logprobs: bool = False,
    finish: str | None = None,
) -> dict[str, Any]:
    logprobs = {"content": list(found.logprobs), "refusal": None} if found is not None and with_logprobs else None
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _refuse_contradictions(body: ChatBody) -> None:
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise ApiError(400, "max_tokens and max_completion_tokens differ. Give one of them.", "max_tokens")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true.", "top_logprobs")
    body.refuse_unused_stream_options()
    if body.tool_choice not in (None, "none", "auto") and not body.tools:
        raise ApiError(400, "tool_choice needs tools.", "tool_choice")
    if body.parallel_tool_calls is False:
        raise ApiError(
            400,
            "parallel_tool_calls: false is not supported. Leave it out.",
            "parallel_tool_calls",
            "unsupported_field",
        )
    given = [name for name in ("regex", "grammar") if getattr(body, name) is not None]
    if body.response_format is not None and body.response_format.type != "text":
        given.append("response_format")
    if body.tools and body.tool_choice != "none":
        given += ["tools"] if given else []
    if len(given) > 1:
        raise ApiError(400, f"{' and '.join(given)} cannot be followed together. Give one of them.", given[0])


def _schema(body: ChatBody) -> str | None:
    if body.response_format is None:
        return None
    wanted = body.response_format.json_schema
    return schema_text(
        body.response_format.type, None if wanted is None else wanted.schema_, "response_format.json_schema"
    )


def _grammar(form: ToolCallForm, tools: Tools, choice: str | NamedTool | None) -> str:
    """The grammar of the call that the answer has to be."""
    allowed = (
        tools
        if not isinstance(choice, NamedTool)
        else [t for t in tools if t["function"]["name"] == choice.function.name]
    )
    if not allowed:
        raise ApiError(400, "tool_choice names a function that is not in tools.", "tool_choice")
    grammar = form.grammar(allowed)
    if grammar is None:
        message = "The form of this model's tool calls cannot be forced. Set tool_choice to auto or none."
        raise ApiError(400, message, "tool_choice", "unsupported_field")
    return grammar
